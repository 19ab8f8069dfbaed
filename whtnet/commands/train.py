"""Train one model: ``whtnet train backbone=resnet20 policy=paper dataset=cifar10 trainer.epochs=30 seed=3``.

``torchrun --nproc-per-node 4 train.py …`` trains it in four processes; docs/many-machines.md says more.
"""

import functools
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from whtnet.commands.arguments import usage_error
from whtnet.errors import JobFailedError, UserError, limits_told, warnings_told
from whtnet.extensions import trust_typed
from whtnet.overrides import as_text, check_words, explain, plain
from whtnet.searchpath import register_name_source
from whtnet.shipped import ROOT
from whtnet.sweeps import register_sweeper, title_of_job


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="config")
def _train(config: DictConfig) -> float | None:
    """Compose the config, run it, and return the test error in percent."""
    settings = _plain(config, title_of_job())
    from whtnet.cli import train  # here: --help and completion need not wait for PyTorch

    return train(settings, title_of_job())


def _plain(config: DictConfig, job: str | None) -> dict[str, Any]:
    try:
        trust_typed(HydraConfig.get().overrides.task)
        return plain(config)
    except (UserError, OmegaConfBaseException) as error:
        message = explain(error, ROOT / "configs")
        if job is None:
            sys.exit(f"error: {message}")
        print(f"error: {message}", file=sys.stderr)
        raise JobFailedError(message) from error


def _tell_warning(text: str) -> None:
    from whtnet.console import print_warning  # it needs PyTorch; for help and completion nobody has to wait for that

    print_warning(text)


def _read_options() -> None:
    """Let what Hydra's options can't be end in a line; they are read again by Hydra itself."""
    parser = get_args_parser()
    vars(parser)["error"] = functools.partial(usage_error, parser)
    options = parser.parse_args()
    if sum(map(bool, (options.run, options.multirun, options.cfg, options.info, options.shell_completion))) > 1:
        usage_error(parser, "--run, --multirun, --cfg, --info and --shell-completion exclude each other")
    name = (options.config_name or "config").removesuffix(".yaml")
    if name != "config" and not options.config_path and (ROOT / "configs" / f"{name}.yaml").is_file():
        usage_error(parser, f"{name} is no config of a run; leave out --config-name")
    if (path := options.config_path) and "://" not in path:
        if not Path(path, f"{name}.yaml").is_file():
            replaced = f"--config-path takes the place of the project's configs, and {path} has no {name}.yaml"
            usage_error(parser, f"{replaced}; --config-dir={path} adds to them")
        if not Path(path).is_absolute():
            usage_error(parser, f"--config-path must be absolute: --config-path={Path(path).resolve()}")
    if options.resolve and not (options.cfg or options.help):
        usage_error(parser, "--resolve is for --cfg")


def main() -> None:
    """Let Hydra parse the command line and train, once or for each job of a sweep."""
    if "RANK" in os.environ:  # one of several processes
        from whtnet.cli import only_the_first_speaks

        only_the_first_speaks()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors; they are told below
    register_name_source()
    register_sweeper()
    try:
        check_words(sys.argv[1:], ROOT / "configs")
        sys.argv[1:] = as_text(sys.argv[1:])
        with limits_told(), warnings_told(_tell_warning):
            _read_options()
            _train()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error, ROOT / 'configs')}")
    except (UserError, JobFailedError) as error:
        sys.exit(f"error: {error}")
