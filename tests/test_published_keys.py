"""Networks of the published sizes have the parameters of the released checkpoints, name by name and
shape by shape."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path

import pytest
from golden.case import FOLDER, REPOSITORY

from d2.priors.camera_prior import CameraPriorConfig
from d2.priors.checkpoint import PUBLISHED, Entry, check_layout, layout, wanted

INVENTORIES = {  # of released files; svd has svd_xt's networks
    **{"svd": "svd_xt", "svd_xt": "svd_xt", "sv3d_u": "sv3d_u", "sv3d_p": "sv3d_p"},
    **{"seva": "seva", "seva_1_0": "seva"},
}


def inventory(name: str, dtype: str = "F32") -> dict[str, Entry]:
    """The header of a released file, whatever its name."""
    path = FOLDER / f"{INVENTORIES[name]}.keys.json"
    if not path.is_file():
        pytest.skip(f"no inventory {path}; set D2_PARITY_DIR")
    keys = json.loads(path.read_text())["keys"]
    shapes = {
        key: value["shape"] if isinstance(value, dict) else value for key, value in keys.items()
    }
    return {
        key: Entry(dtype, tuple(shape), path, 0, 4 * math.prod(shape))
        for key, shape in shapes.items()
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_is_used_once_or_left_out_for_a_reason(name: str) -> None:
    published, keys = PUBLISHED[name], inventory(name)
    sources, left_out = layout(published, folder=False)
    used = [key for origin in sources.values() for key in origin.keys]
    over = [key for key in keys if key.startswith(tuple(part.prefix for part in left_out))]
    assert sorted(used + over) == sorted(keys)
    assert {name: keys[origin.keys[0]].shape for name, origin in sources.items()} == wanted(
        published
    )
    for part in left_out:
        assert part.reason and any(key.startswith(part.prefix) for key in keys), (
            f"nothing is {part.prefix}"
        )


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_released_file_is_accepted(name: str, dtype: str) -> None:
    check_layout(inventory(name, dtype), PUBLISHED[name], Path(PUBLISHED[name].file))


@pytest.mark.parametrize("name", PUBLISHED)
def test_bytes_are_those_of_the_tensors(name: str) -> None:
    assert PUBLISHED[name].bytes == sum(entry.end for entry in inventory(name).values())


@pytest.mark.parametrize(
    ("held", "asked", "way_out"),
    [
        ("sv3d_p", "svd_xt", "sv3d_p, a multi-view prior; give it as multiview.checkpoint"),
        ("sv3d_u", "svd", "sv3d_u, a multi-view prior; give it as multiview.checkpoint"),
        ("svd_xt", "sv3d_u", "svd or svd_xt, a video prior; give it as video.checkpoint"),
        ("sv3d_u", "sv3d_p", "sv3d_u, a multi-view prior; say multiview=sv3d_u"),
        ("sv3d_p", "sv3d_u", "sv3d_p, a multi-view prior; say multiview=sv3d_p"),
    ],
)
def test_a_file_of_another_published_prior_is_called_by_its_name(
    held: str, asked: str, way_out: str
) -> None:
    with pytest.raises(ValueError) as refused:
        check_layout(inventory(held), PUBLISHED[asked], Path("x.safetensors"))
    assert str(refused.value).startswith(f"x.safetensors: not {asked} but {way_out} (")
    assert "\n" not in str(refused.value)


def test_one_wrong_shape_is_named_with_the_way_out() -> None:
    header = inventory("svd_xt")
    key = "model.diffusion_model.out.2.weight"
    header[key] = header[key]._replace(shape=(4, 320, 1, 1))
    header["lora.up"] = header[key]
    del header["model.diffusion_model.out.2.bias"]
    with pytest.raises(ValueError) as refused:
        check_layout(header, PUBLISHED["svd_xt"], Path("x.safetensors"))
    assert (
        str(refused.value)
        == f"x.safetensors: not svd_xt: {key} makes (4, 320, 1, 1), wanted (4, 320, 3, 3), and 2"
        " more misfits; get svd_xt.safetensors from"
        " stabilityai/stable-video-diffusion-img2vid-xt"
    )


@pytest.mark.parametrize("dtype", ["I64", "F64", "U8"])
def test_a_used_tensor_of_another_type_is_refused(dtype: str) -> None:
    published = PUBLISHED["sv3d_p"]
    with pytest.raises(
        ValueError, match=f"time_embed.0.weight is {dtype}, and {len(wanted(published)) - 1} more"
    ):
        check_layout(inventory("sv3d_p", dtype), published, Path("x.safetensors"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_random_checkpoint_has_the_keys_of_the_released_file(name: str) -> None:
    script = runpy.run_path(str(REPOSITORY / "benchmarks" / "write_random_checkpoint.py"))
    shapes = {key: entry.shape for key, entry in inventory(name).items()}
    assert script["shapes_of"](PUBLISHED[name]) == shapes


def test_published_vectors_are_as_wide_as_their_scalars() -> None:
    for published in PUBLISHED.values():
        prior = published.prior
        assert prior.unet.context_dim == prior.tower.embed_dim
        if isinstance(prior, CameraPriorConfig):
            continue
        assert prior.unet.adm_in_channels == sum(dim for _, dim in prior.scalars)
