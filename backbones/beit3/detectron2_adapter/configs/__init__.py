"""LazyConfig files for detectron2's ``tools/lazyconfig_train_net.py --config-file``; see `detectron2_adapter`."""
