"""A diffusers pipeline as a checkpoint in one file: diffusers' conversion of original names, backwards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING

Weights = dict[str, torch.Tensor]

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "text_model.encoder.layers": "transformer.resblocks", "self_attn": "attn", "layer_norm1": "ln_1",
    "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj",
}  # fmt: skip


def save_checkpoint(pipeline: Any, file: Path) -> None:
    """Write UNet, VAE and text encoders of a Stable Diffusion 1.x or XL pipeline."""
    unet, vae, encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    second = getattr(pipeline, "text_encoder_2", None)
    first = "cond_stage_model" if second is None else "conditioner.embedders.0"
    weights = {
        **_unet(unet.state_dict(), unet.config.layers_per_block),
        **_vae(vae.state_dict(), len(vae.config.block_out_channels)),
        **_text_encoder(encoder.state_dict(), f"{first}.transformer.text_model."),
        **({} if second is None else _open_clip(second.state_dict(), "conditioner.embedders.1.model.")),
    }
    safetensors.torch.save_file({name: value.contiguous() for name, value in weights.items()}, file)


def _unet(weights: Weights, layers: int) -> Weights:
    mapping = DIFFUSERS_TO_LDM_MAPPING["unet"]
    names = mapping["layers"] | mapping["addition_embed_type"]
    upper = [name.split(".") for name in weights if name.startswith("up_blocks")]
    with_attention = {block for _, block, kind, *_ in upper if kind == "attentions"}

    def rename(name: str) -> str:
        if name in names:
            return str(names[name])
        if middle := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
            inside = middle[1] == "attentions"
            place, rest = (1, middle[3]) if inside else (2 * int(middle[2]), _replaced(middle[3], _RESNET))
            return f"middle_block.{place}.{rest}"
        found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
        assert found is not None, name
        side, block, kind, number, rest = found.groups()
        blocks, first = ("input_blocks", 1) if side == "down" else ("output_blocks", 0)
        place = first + int(block) * (layers + 1) + int(number)
        match kind:
            case "resnets":
                return f"{blocks}.{place}.0.{_replaced(rest, _RESNET)}"
            case "attentions":
                return f"{blocks}.{place}.1.{rest}"
            case "downsamplers":
                return f"{blocks}.{place + layers}.0.op.{rest.removeprefix('conv.')}"
        return f"{blocks}.{place + layers}.{2 if block in with_attention else 1}.{rest}"

    return {f"model.diffusion_model.{rename(name)}": value for name, value in weights.items()}


def _vae(weights: Weights, blocks: int) -> Weights:
    names = DIFFUSERS_TO_LDM_MAPPING["vae"]

    def upper(found: re.Match[str]) -> str:
        kind = {"resnets": "block", "upsamplers.0": "upsample"}[found[2]]
        return f"up.{blocks - 1 - int(found[1])}.{kind}"

    def rename(name: str) -> str:
        if "mid_block.attentions.0" in name:
            return _replaced(name.replace("mid_block.attentions.0", "mid.attn_1"), _ATTENTION)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.(resnets|upsamplers\.0)", upper, name)
        return name.replace("conv_shortcut", "nin_shortcut")

    return {f"first_stage_model.{names.get(name, rename(name))}": value for name, value in weights.items()}


def _text_encoder(weights: Weights, prefix: str) -> Weights:
    return {prefix + name.removeprefix("text_model."): value for name, value in weights.items()}


def _open_clip(weights: Weights, prefix: str) -> Weights:
    """Rename, and lay the three projections of an attention below each other."""
    names = DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"]
    renamed: Weights = {}
    for name, value in weights.items():
        if name in names:
            renamed[prefix + names[name]] = value.T if name == "text_projection.weight" else value
        elif ".q_proj." in name:
            parts = [weights[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            own = _replaced(name.replace(".q_proj.", ".in_proj_"), _OPEN_CLIP)
            renamed[prefix + own] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            renamed[prefix + _replaced(name, _OPEN_CLIP)] = value
    return renamed


def _replaced(name: str, names: dict[str, str]) -> str:
    for theirs, original in names.items():
        name = name.replace(theirs, original)
    return name
