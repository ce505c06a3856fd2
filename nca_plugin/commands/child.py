"""The command `nca-plugin` as a process that ends with the study that started it."""

from nca_plugin.__main__ import main
from nca_plugin.launch.process import die_with_torchrun

if __name__ == "__main__":
    die_with_torchrun()
    main()
