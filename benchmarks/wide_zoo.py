"""Networks as their libraries make them, with random weights: name → module and inputs.

The smallest network of every module of timm 1.0.31 that has one below 40 million parameters, and
models of transformers, each small; none of them chosen by whether it can be described.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from zoo import Inputs, _declare_torchvision, images, tokens

_TIMM: Final = """
    halonet_h1 mobileone_s1 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 convnext_zepto_rms
    cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny
    deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1
    efficientformerv2_s0 mobilenetv2_035 efficientvim_m1 efficientvit_b0 efficientvit_m0
    vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050
    hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t
    inception_next_atto inception_v3 lcnetv2_small levit_128s lowformer_b0 mambaout_femto
    maxvit_pico_rw_256 poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050 mobilevit_xxs
    mvitv2_tiny nest_tiny nextvit_small nf_regnet_b0 pit_ti_224 pvt_v2_b0 rdnet_tiny regnetx_002
    repghostnet_050
    repvit_m1 res2next50 resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18
    sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224
    swinv2_tiny_window16_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m
    twins_svt_small visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224
    vit_srelpos_small_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw
    legacy_xception xception41p xcit_nano_12_p8_224
"""
# At its usual size a forward takes a second an image.
_SMALLER: Final = {"sam2_hiera_tiny": 256}

_SIZES: Final = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_IDS: Final = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_GROUPED: Final = {**_SIZES, **_IDS, "num_key_value_heads": 2}
_VISION: Final = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_OPT: Final = {**_SIZES, **_IDS, "ffn_dim": 64, "word_embed_proj_dim": 32}
_T5: Final = {
    "vocab_size": 100,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
}
_STAGES: Final = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}


def _waves(batch: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 800),)


def _two_texts(batch: int) -> tuple[Tensor, ...]:
    text, mask = torch.randint(3, 90, (batch, 16)), torch.ones(batch, 16, dtype=torch.int64)
    return text, mask, torch.randint(3, 90, (batch, 8))


_TRANSFORMERS: Final[dict[str, tuple[dict[str, Any], Inputs]]] = {
    "BertModel": (_SIZES, tokens()),
    "RobertaModel": (_SIZES, tokens()),
    "ElectraModel": (_SIZES | {"embedding_size": 32}, tokens()),
    "AlbertModel": (_SIZES | {"embedding_size": 32}, tokens()),
    "DebertaModel": (_SIZES, tokens()),
    "DebertaV2Model": (_SIZES, tokens()),
    "MobileBertModel": (
        _SIZES | {"embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32},
        tokens(),
    ),
    "ModernBertModel": (_SIZES | _IDS, tokens()),
    "XLNetModel": (
        {"vocab_size": 100, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
        tokens(),
    ),
    "GPT2LMHeadModel": (
        {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, **_IDS},
        tokens(),
    ),
    "GPTNeoModel": (
        _SIZES
        | _IDS
        | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        tokens(),
    ),
    "GPTNeoXForCausalLM": (_SIZES | _IDS, tokens()),
    "OPTModel": (_OPT, tokens()),
    "OPTForCausalLM": (_OPT, tokens()),
    "LlamaForCausalLM": (_GROUPED, tokens()),
    "Qwen2Model": (_GROUPED, tokens()),
    "Qwen3ForCausalLM": (_GROUPED | {"head_dim": 8}, tokens()),
    "MistralModel": (_GROUPED, tokens()),
    "GemmaModel": (_GROUPED | {"head_dim": 8}, tokens()),
    "PhiForCausalLM": (_SIZES | _IDS, tokens()),
    "BloomModel": (
        {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_IDS},
        tokens(),
    ),
    "FalconModel": (_SIZES | _IDS, tokens()),
    "MambaModel": (
        {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        tokens(),
    ),
    "T5EncoderModel": (_T5, tokens()),
    "T5ForConditionalGeneration": (_T5, _two_texts),
    "ViTModel": (_VISION, images(32)),
    "ViTForImageClassification": (_VISION, images(32)),
    "DeiTModel": (_VISION, images(32)),
    "BeitModel": (_VISION, images(32)),
    "Dinov2Model": (_VISION, images(32)),
    "SwinModel": (
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
        images(32),
    ),
    "ConvNextModel": ({"num_stages": 4, **_STAGES}, images()),
    "ResNetForImageClassification": ({"embedding_size": 8, **_STAGES}, images()),
    "SegformerForSemanticSegmentation": (
        {"num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16, **_STAGES},
        images(),
    ),
    "MobileNetV2Model": ({"depth_multiplier": 0.25}, images()),
    "CLIPTextModel": (_SIZES | _IDS, tokens()),
    "CLIPVisionModel": (_VISION, images(32)),
    "Wav2Vec2Model": (
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "conv_dim": (16, 16),
            "conv_kernel": (8, 4),
            "conv_stride": (4, 2),
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
        },
        _waves,
    ),
}


def _of_timm(name: str) -> tuple[nn.Module, Inputs]:
    _declare_torchvision()
    import timm

    module: Any = timm.create_model(name)
    return module, images(_SMALLER.get(name, module.default_cfg["input_size"][-1]))


def _of_transformers(name: str) -> tuple[nn.Module, Inputs]:
    _declare_torchvision()
    import transformers

    transformers.logging.set_verbosity_error()
    options, inputs = _TRANSFORMERS[name]
    of_class: Any = getattr(transformers, name)
    return of_class(of_class.config_class(**options)), inputs


WIDE_ZOO: Final[dict[str, Callable[[], tuple[nn.Module, Inputs]]]] = {
    **{f"timm {name}": partial(_of_timm, name) for name in _TIMM.split()},
    **{f"HF {name}": partial(_of_transformers, name) for name in _TRANSFORMERS},
}
