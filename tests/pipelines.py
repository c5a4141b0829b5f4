"""Tiny diffusers pipelines with random weights and real tokenizers, all made here: nothing is downloaded.

Past 300 lines since each of nine pipelines names the sizes of all its parts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from storage.models import builtin_model_path
from tests.device import DEVICE
from worker.models.pipeline import LoadedPipeline

WIDE = 16  # of text embeddings
SAMPLE = 8  # latents of a picture: 8 x 8

_TRAINING = ["a red fox in the snow", "an otter with a hat, oil painting", "user assistant system image text"]


@functools.cache
def _vocabulary() -> str:
    """Train a byte-level BPE, so that every text has tokens; as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    text: str = tokenizer.to_str()
    return text


def tokenizer(length: int = 77) -> Any:
    """Return a tokenizer that begins and ends every text, pads with 0 and can format a chat."""
    built = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_vocabulary()),
        bos_token="<s>",  # noqa: S106 - marks in texts, no secrets
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        model_max_length=length,
    )
    built.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    return built


_SMALL = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def clip(*, projection: bool = False, **options: Any) -> Any:
    """Return a text encoder of CLIP, with or without projection."""
    sizes = {"hidden_size": WIDE, "num_hidden_layers": 2} | _SMALL | options
    config = transformers.CLIPTextConfig(
        intermediate_size=24,
        num_attention_heads=2,
        projection_dim=sizes["hidden_size"],
        max_position_embeddings=77,
        **sizes,
    )
    made = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return made(config)


def t5() -> Any:
    """Return a T5 encoder."""
    config = transformers.T5Config(
        d_model=2 * WIDE, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=300, pad_token_id=0
    )
    return transformers.T5EncoderModel(config)


def gemma() -> Any:
    """Return a Gemma 2 model."""
    config = transformers.Gemma2Config(
        hidden_size=WIDE,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        **_SMALL,
    )
    return transformers.Gemma2Model(config)


def qwen3() -> Any:
    """Return a Qwen 3 model."""
    config = transformers.Qwen3Config(
        hidden_size=WIDE,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        **_SMALL,
    )
    return transformers.Qwen3Model(config)


def qwen25_vl() -> Any:
    """Return a Qwen 2.5 VL model."""
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": WIDE,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1000000.0,
            **_SMALL,
        },
        vision_config={
            "depth": 1,
            "hidden_size": WIDE,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": WIDE,
        },
        vision_end_token_id=290,
        vision_start_token_id=291,
        vision_token_id=292,
        image_token_id=293,
        video_token_id=294,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def vae(channels: int = 4, **options: Any) -> Any:
    """Return an AutoencoderKL with 8 pixels per latent."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        **options,
    )


def _flow(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def stable_diffusion() -> Any:
    """Return a StableDiffusionPipeline."""
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=SAMPLE,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDE,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return diffusers.StableDiffusionPipeline(
        unet=unet,
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        vae=vae(),
        text_encoder=clip(),
        tokenizer=tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def clip_tokenizer(**options: Any) -> Any:
    """Return the demo model's tokenizer, a real CLIPTokenizer of 32 tokens."""
    return transformers.CLIPTokenizer.from_pretrained(
        builtin_model_path() / "tokenizer", local_files_only=True, **options
    )


def stable_diffusion_xl(
    tokenizers: tuple[Any, Any] | None = None, *, second: dict[str, int] | None = None
) -> Any:
    """Return a StableDiffusionXLPipeline.

    Args:
        tokenizers: None for two of this module.
        second: what the second encoder's config has otherwise than the first one's.
    """
    own, other = tokenizers or (tokenizer(), tokenizer())
    words = {} if tokenizers is None else {
        "vocab_size": len(own), "bos_token_id": own.bos_token_id, "eos_token_id": own.eos_token_id,
        "pad_token_id": own.pad_token_id,
    }  # fmt: skip
    encoder, projecting = clip(**words), clip(projection=True, **words | (second or {}))
    pooled = projecting.config.projection_dim
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=SAMPLE,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 4 + pooled,
        cross_attention_dim=WIDE + pooled,
        norm_num_groups=4,
    )
    return diffusers.StableDiffusionXLPipeline(
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
        ),
        vae=vae(),
        text_encoder=encoder,
        text_encoder_2=projecting,
        tokenizer=own,
        tokenizer_2=other,
        add_watermarker=False,
    )


def stable_diffusion_3() -> Any:
    """Return a StableDiffusion3Pipeline."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SAMPLE,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDE,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDE,
        out_channels=4,
        pos_embed_max_size=2 * SAMPLE,
    )
    return diffusers.StableDiffusion3Pipeline(
        scheduler=_flow(),
        transformer=transformer,
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(projection=True),
        tokenizer=tokenizer(),
        text_encoder_2=clip(projection=True),
        tokenizer_2=tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=tokenizer(),
    )


def flux() -> Any:
    """Return a FluxPipeline."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDE,
        pooled_projection_dim=WIDE,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return diffusers.FluxPipeline(
        scheduler=_flow(),
        transformer=transformer,
        vae=vae(1, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
    )


def pixart_sigma() -> Any:
    """Return a PixArtSigmaPipeline."""
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32,  # the smallest that it has shapes of pictures for
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=2 * WIDE,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5(),
        vae=vae(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def sana() -> Any:
    """Return a SanaPipeline."""
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=WIDE,
        sample_size=16,  # the smallest that it has shapes of pictures for
    )
    dc = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(4,) * 6,
        decoder_block_out_channels=(4,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer(300),
        text_encoder=gemma(),
        vae=dc,
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
    )


def qwen_image() -> Any:
    """Return a QwenImagePipeline."""
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=WIDE,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    coder = diffusers.AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return diffusers.QwenImagePipeline(
        scheduler=_flow(use_dynamic_shifting=True),
        transformer=transformer,
        vae=coder,
        text_encoder=qwen25_vl(),
        tokenizer=tokenizer(1024),
    )


def z_image() -> Any:
    """Return a ZImagePipeline."""
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        norm_eps=1e-5,
        qk_norm=True,
        cap_feat_dim=WIDE,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=[8, 4, 4],
        axes_lens=[512, 32, 32],
    )
    return diffusers.ZImagePipeline(
        scheduler=_flow(),
        transformer=transformer,
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=qwen3(),
        tokenizer=tokenizer(512),
    )


def lumina2() -> Any:
    """Return a Lumina2Pipeline."""
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        scaling_factor=1.0,
        axes_dim_rope=(4, 2, 2),
        cap_feat_dim=WIDE,
    )
    return diffusers.Lumina2Pipeline(
        scheduler=_flow(),
        transformer=transformer,
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=gemma(),
        tokenizer=tokenizer(256),
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "stable_diffusion": stable_diffusion,
    "stable_diffusion_xl": stable_diffusion_xl,
    "stable_diffusion_3": stable_diffusion_3,
    "flux": flux,
    "pixart_sigma": pixart_sigma,
    "sana": sana,
    "qwen_image": qwen_image,
    "z_image": z_image,
    "lumina2": lumina2,
}


@functools.cache
def tiny(name: str) -> Any:
    """Return one of `BUILDERS`' pipelines, made once: who changes it takes a `fresh_tiny`."""
    return fresh_tiny(name)


def fresh_tiny(name: str) -> Any:
    """Return one of `BUILDERS`' pipelines, seeded, in eval mode, without progress bar."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = BUILDERS[name]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(DEVICE)


SIZES = {"pixart_sigma": 256, "sana": 512}  # the smallest that they have shapes of pictures for


@functools.cache
def load_tiny(name: str) -> LoadedPipeline:
    """Return a pipeline as a worker holds it, in float32; made once."""
    return loaded(name, tiny(name))


def loaded(name: str, pipeline: Any) -> LoadedPipeline:
    """Return this pipeline as a worker holds it."""
    size = SIZES.get(name, 8 * SAMPLE)
    return LoadedPipeline(
        name=name,
        source=name,
        revision="0" * 64,
        family=type(pipeline).__name__,
        pipeline=pipeline,
        denoiser_name="unet" if hasattr(pipeline, "unet") else "transformer",
        device=DEVICE,
        dtype=torch.float32,
        native_size=(size, size),
        defaults={"width": size, "height": size, "sampler": "default", "schedule": "default"},
    )
