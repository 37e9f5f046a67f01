"""Networks of the published sizes have the parameters of the released checkpoints, name by name and shape by shape."""

from __future__ import annotations

import json

import pytest
import torch
from golden.case import FOLDER
from torch import nn

from d2.nn.autoencoder import Autoencoder, AutoencoderConfig, ModeEncoder
from d2.nn.clip import ImageTower
from d2.nn.video_unet import VideoUNet
from d2.priors import sv3d, svd
from d2.priors.prior import PriorConfig

TOWER = "conditioner.embedders.0.open_clip.model.visual."
PUBLISHED = [
    ("svd_xt", svd.SVD_XT, svd.FIRST_STAGE, "conditioner.embedders.3.encoder."),
    ("sv3d_p", sv3d.SV3D_P, sv3d.FIRST_STAGE, "conditioner.embedders.1.encoder."),
    ("sv3d_u", sv3d.SV3D_U, sv3d.FIRST_STAGE, "conditioner.embedders.1.encoder."),
]


@pytest.mark.parametrize(("name", "prior", "first_stage", "encoder"), PUBLISHED, ids=[p[0] for p in PUBLISHED])
def test_keys_and_shapes(name: str, prior: PriorConfig, first_stage: AutoencoderConfig, encoder: str) -> None:
    inventory = FOLDER / f"{name}.keys.json"
    if not inventory.is_file():
        pytest.skip(f"no inventory {inventory}; set D2_PARITY_DIR")
    keys = {key: tuple(shape) for key, shape in json.loads(inventory.read_text())["keys"].items()}
    assert prior.encoder is not None
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {
            "model.diffusion_model.": VideoUNet(prior.unet),
            TOWER: ImageTower(prior.tower),
            encoder: ModeEncoder(prior.encoder),
            "first_stage_model.": Autoencoder(first_stage),
        }
    for prefix, network in networks.items():
        ours = {prefix + key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        theirs = {key: shape for key, shape in keys.items() if key.startswith(prefix)}
        if prefix == encoder:  # its decoder lies unused in the checkpoint
            theirs = {key: shape for key, shape in theirs.items() if not key.startswith(unused(encoder))}
        assert ours == theirs


def unused(encoder: str) -> tuple[str, str]:
    return f"{encoder}decoder.", f"{encoder}post_quant_conv."


def test_published_vectors_are_as_wide_as_their_scalars() -> None:
    for _, prior, _, _ in PUBLISHED:
        assert prior.unet.adm_in_channels == sum(dim for _, dim in prior.scalars)
        assert prior.unet.context_dim == prior.tower.embed_dim
