"""The first edition's name of `backbones.beit3.detectron2_adapter`: users' configuration files, and those inside checkpoints, import it."""

import sys

from beit3_bench.backbones.beit3 import detectron2_adapter

sys.modules[__name__] = detectron2_adapter
