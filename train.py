"""Train one model: ``python train.py backbone=resnet20 policy=paper dataset=cifar10 trainer.epochs=30 seed=3``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from whtnet.console import ProgressView, console, exit_on_user_error, print_record, print_report
from whtnet.experiment import RECORD, Experiment, dry_run, run
from whtnet.searchpath import register_backbones
from whtnet.tracking import make_sink


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
@exit_on_user_error
def main(config: DictConfig) -> float | None:
    """Compose the config, run it, and return the test error in percent, which a Hydra sweeper can minimise."""
    c = OmegaConf.to_container(config, resolve=True)
    experiment = Experiment(c["backbone"], c["policy"], c["dataset"], c["trainer"], c["seed"], c["device"])
    if c["trainer"]["dry_run"]:
        report, metrics = dry_run(experiment)
        print_report(report)
        console.print(f"One batch trained: loss {metrics['train_loss']:.4f}. Nothing was written.")
        return None
    root = Path(c["run_root"])
    folder = experiment.folder(root)
    finished = c["resume"] == "auto" and (folder / RECORD).exists()
    console.print(f"run folder: {folder}" + (" (finished earlier; resume=never trains again)" if finished else ""))
    with ProgressView() as view:
        record = run(
            experiment,
            sink=make_sink(**c["logger"]),
            root=root,
            resume=c["resume"],
            group=c["group"],
            tags=tuple(c["tags"]),
            on_report=print_report,
            on_progress=view.task(experiment.name),
        )
    print_record(record)
    return 100 - record["test_top1"]


if __name__ == "__main__":
    register_backbones()
    main()
