"""What is known of a published checkpoint before it is opened: sizes, defaults, origin, and what is
left out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from d2.priors.camera_prior import CameraPriorConfig
from d2.priors.first_stage import FirstStageConfig
from d2.priors.prior import PriorConfig


class LeftOut(NamedTuple):
    """Tensors of a file that no network here uses, on purpose."""

    prefix: str
    reason: str


@dataclass(frozen=True)
class Published:
    """A published prior. `embedder` is the place of the conditioning encoder in the conditioner.

    The file of a prior of any cameras holds its UNet alone: image tower and autoencoder are those
    of the video prior beside it, which has both.
    """

    name: str
    kind: Literal["video", "multiview"]
    prior: PriorConfig | CameraPriorConfig
    first_stage: FirstStageConfig
    scale_factor: float  # latents = scale_factor * z
    embedder: int | None
    length: int  # frames or views it was trained on
    cond_aug: float
    repository: str
    bytes: int  # of its tensors in float32, as the files are
    licence: str
    fps_id: float | None = None
    motion_bucket_id: float | None = None
    size: int = 576  # pixels of a side
    any_length: bool = False  # whether it takes sequences longer than those it was trained on
    file_there: str | None = None  # name of the file in the repository; None: as here

    @property
    def file(self) -> str:
        return f"{self.name}.safetensors"

    @property
    def there(self) -> str:
        """What the file is called in its repository."""
        return self.file_there or self.file

    @property
    def any_cameras(self) -> bool:
        """Whether it is told cameras and known cells, and its file holds a UNet alone."""
        return isinstance(self.prior, CameraPriorConfig)

    @property
    def sources(self) -> dict[str, str]:
        """Prefixes of our parameters -> prefixes of the official file."""
        if self.any_cameras:
            return {"prior.unet.": ""}
        return {
            "prior.unet.": "model.diffusion_model.",
            "prior.tower.": f"{CLIP}visual.",
            "prior.encoder.": f"conditioner.embedders.{self.embedder}.encoder.",
            "first_stage.autoencoder.": "first_stage_model.",
        }

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Of the official file."""
        if self.any_cameras:
            return ()
        encoder = self.sources["prior.encoder."]
        text = (
            "positional_embedding",
            "text_projection",
            "logit_scale",
            "token_embedding.",
            "ln_final.",
        )
        return (
            *(
                LeftOut(CLIP + part, "the text half of CLIP; conditions are pictures")
                for part in text
            ),
            LeftOut(f"{encoder}decoder.", "the conditioning encoder only encodes"),
            LeftOut(f"{encoder}post_quant_conv.", "the conditioning encoder only encodes"),
        )


CLIP = "conditioner.embedders.0.open_clip.model."
