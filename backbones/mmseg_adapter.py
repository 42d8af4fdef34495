"""The first edition's name of `backbones.beit3.mmseg_adapter`: users' configuration files, and those inside checkpoints, import it."""

import sys

from beit3_bench.backbones.beit3 import mmseg_adapter

sys.modules[__name__] = mmseg_adapter
