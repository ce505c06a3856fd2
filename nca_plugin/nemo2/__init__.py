"""Sources as data of NeMo 2.7: the data module, its names on NeMo-Run's command line, and CPU mode.

In a recipe of your own:

    from nca_plugin.nemo2.data import SourceDataModule
    recipe.data = run.Config(SourceDataModule, source="nca", preset="code", global_batch_size=512, micro_batch_size=1)
"""
