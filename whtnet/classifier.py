"""A trained network with all it takes to use it: class names, image size, normalisation; on disk and on a model hub."""

import contextlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from whtnet.backbones import build_backbone, without_weights
from whtnet.backbones.weights import find_published, load_weights_, published_settings
from whtnet.data.pixels import to_rgb
from whtnet.data.splits import eval_transform
from whtnet.engine import CHECKPOINT, CheckpointError, load_checkpoint
from whtnet.errors import UserError
from whtnet.files import atomic_write
from whtnet.policy import Policy, apply_policy_

_CARD = """---
{{ card_data }}
---

# {{ name }}

{% if sites -%}
{{ architecture }} with the policy `{{ policy }}` of whtnet: {{ sites }} convolutions or squeeze-and-excite blocks
replaced (after Pan, Badawi, Cetin, ACM TECS 2022, doi 10.1145/3510026).
{%- else -%}
{{ architecture }} of whtnet with nothing replaced.
{%- endif %}

| | |
| :--- | ---: |
| parameters | {{ parameters }} |
| without the policy | {{ parameters_before }} |
| MACs | {{ macs }} |
| image | {{ input_size }} |
| classes | {{ classes }} |
{%- for key, value in training.items() %}
| {{ key }} | {{ value }} |
{%- endfor %}

```python
from whtnet.classifier import Classifier

model = Classifier.from_pretrained("OWNER/NAME")  # or a folder
logits = model(images)  # images of {{ input_size }} pixels in 0..1
```
"""


class Classifier(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="whtnet",
    tags=["walsh-hadamard-transform", "image-classification"],
    license="mit",
    pipeline_tag="image-classification",
):
    """A network behind its normalisation, ``(N, C, H, W)`` pixels in 0..1 → ``(N, classes)`` logits.

    ``save_pretrained(folder)`` writes ``config.json``, ``model.safetensors`` and a model card, ``push_to_hub(repo)``
    uploads them, ``Classifier.from_pretrained(folder or repo)`` reads them (huggingface_hub's mixin).

    Args:
        backbone: keywords of :func:`whtnet.backbones.build_backbone`.
        policy: data of a :class:`whtnet.Policy`.
        classes: names, in the order of the logits.
        input_size: (C, H, W) of an image.
        mean: of each channel, subtracted.
        std: of each channel, divided by.
        dataset: keywords of :func:`whtnet.data.load_dataset` that it was trained on.
        training: what else the model card says, such as data set and accuracy.
        share: of the policy's sites that are replaced, see :func:`whtnet.apply_policy_`.

    Attributes:
        backbone: as above.
        policy: as above.
        share: as above.
        classes: as above.
        input_size: as above.
        dataset: as above.
        training_facts: as ``training`` above.
        network: takes normalised images; what training worked on.
        report: what the policy replaced.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Mapping[str, Any],
        policy: Mapping[str, Any],
        classes: Sequence[str],
        input_size: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        dataset: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        share: float = 1.0,
    ) -> None:
        super().__init__()
        self.backbone, self.policy, self.share = dict(backbone), dict(policy), share
        self.classes = [str(name) for name in classes]
        channels, height, width = map(int, input_size)
        self.input_size = channels, height, width
        self.dataset = dict(dataset or {})
        self.training_facts = dict(training or {})
        mean, std = ([float(value) for value in values] for values in (mean, std))
        # The mixin saves what JSON has, and leaves out an array or a range.
        plain = {"classes": self.classes, "input_size": self.input_size, "mean": mean, "std": std}
        self._hub_mixin_config = {**cast("dict[str, Any]", self._hub_mixin_config), **plain}
        self.network = build_backbone(**without_weights(backbone), num_classes=len(self.classes))
        self.report = apply_policy_(self.network, Policy.from_dict(policy), self.input_size, share)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def load(cls, source: str | Path) -> "Classifier":
        """Read a trained classifier, in evaluation mode, on the CPU.

        Args:
            source: folder of a run, a checkpoint file, a folder of ``save_pretrained``, ``OWNER/NAME`` on the hub, or a
                file of :meth:`publish`, also by its name alone if it is one of the project's, in ``results/weights``.

        Raises:
            CheckpointError: if there is no such thing, or it can't be read.
        """
        path = Path(source)
        file = path / CHECKPOINT if (path / CHECKPOINT).exists() else path
        if not path.exists() and (published := find_published(str(source))) is not None:
            file = published
        if file.suffix == ".safetensors" and file.is_file():
            model = cls(**published_settings(file))
            load_weights_(model.network, str(file))
            return model.eval()
        if file.is_file():
            return cls._from_checkpoint(file)
        if path.is_dir() and not (path / "config.json").exists():
            raise CheckpointError(f"{path} holds neither a run's {CHECKPOINT} nor a saved model's config.json")
        if not path.is_dir() and not _may_be_on_the_hub(str(source)):
            raise CheckpointError(
                f"{source} is no trained model: there is no such folder or file (from a hub, give OWNER/NAME)"
            )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # huggingface_hub prints, where there may have to be JSON
                return cls.from_pretrained(str(source))
        except UserError:
            raise
        except Exception as error:  # the hub's, or whatever damaged files lead to
            reason = " ".join(str(error).split())
            what = "is no trained model: no run, checkpoint or saved model lies there, and as a name on the hub"
            if path.is_dir():
                what = "holds a damaged model, save it again:"
            raise CheckpointError(f"{source} {what} it can't be read ({reason})") from error

    @classmethod
    def _from_checkpoint(cls, file: Path) -> "Classifier":
        state = load_checkpoint(file, None, torch.device("cpu"))
        last = state["history"][-1] if state["history"] else {"epoch": 0}
        facts = {"data set": state["classifier"]["dataset"]["name"], "epochs": last["epoch"]}
        if "test_top1" in last and not state.get("part"):  # else these weights are newer than the accuracy
            facts["test top-1 (%)"] = round(last["test_top1"], 2)
        model = cls(**state["classifier"], training=facts)
        weights = state["model"]
        if state.get("ema"):  # the average is what was evaluated
            weights = {k.removeprefix("module."): v for k, v in state["ema"].items() if k.startswith("module.")}
        try:
            model.network.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"{file} holds weights of another network: {error}") from error
        return model.eval()

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> "Classifier":
        # The mixin's default would leave what the file lacks at its initial values.
        return super()._from_pretrained(strict=strict, **options)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``(N, C, H, W)`` pixels in 0..1."""
        return self.network((images - self.mean) / self.std)

    def publish(self, file: Path, identity: str, facts: Mapping[str, Any]) -> None:
        """Write the weights and all that :meth:`load` needs to one file, and a model card beside it, ``NAME.md``.

        Args:
            file: ``NAME.safetensors``.
            identity: of the experiment whose record says the accuracy.
            facts: what the card says besides, such as recipe, seed and record.
        """
        weights = {name: value.contiguous() for name, value in self.network.state_dict().items()}
        metadata = {"identity": identity, "classifier": json.dumps(self._hub_mixin_config)}
        atomic_write(file, save(weights, metadata))
        self.training_facts.update(facts)
        card = str(self.generate_model_card()).replace(
            'from_pretrained("OWNER/NAME")  # or a folder', f'load("{file.stem}")'
        )
        atomic_write(file.with_suffix(".md"), card + "\n")

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn upright, resize the shorter side and crop the centre: ``(1, C, H, W)`` in 0..1, as in evaluation.

        Raises:
            ValueError: for pixels that can't become RGB, see :func:`whtnet.data.pixels.to_rgb`.
        """
        options = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": self.dataset.get("crop_pct", 1.0)}
        return eval_transform(self.input_size[1:], **options)(to_rgb(image)).unsqueeze(0)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that ``save_pretrained`` writes as ``README.md``."""
        info = self._hub_mixin_info.model_card_data
        data = ModelCardData(**{**info.to_dict(), "tags": info.tags})
        return ModelCard.from_template(
            data,
            template_str=_CARD,
            name=f"{self.report.architecture}, {self.report.policy}",
            architecture=self.report.architecture,
            policy=self.report.policy,
            sites=len(self.report.replacements),
            parameters=f"{self.report.after.parameters:,}",
            parameters_before=f"{self.report.before.parameters:,}",
            macs=f"{self.report.after.macs:,}",
            input_size="×".join(map(str, self.input_size)),
            classes=len(self.classes),
            training=self.training_facts,
        )


def _may_be_on_the_hub(source: str) -> bool:
    """Whether to ask a hub, which takes long where there is no network: not for what looks like a path."""
    owner, _, name = source.partition("/")
    return bool(re.fullmatch(r"\w[\w.-]*", owner) and re.fullmatch(r"\w[\w.-]*", name)) and not Path(owner).exists()
