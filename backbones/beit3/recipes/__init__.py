"""Fine-tuning recipes of BEiT-3 as data: one TOML file per task, one section per preset, every number with its source.

A section holds the fields of `backbones.recipe.Recipe` that differ from the defaults.
"""
