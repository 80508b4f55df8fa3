"""Operators of ATen that the graph of an exported `forward` may call (spec/pemn.md section 8.4).

Left out on purpose: what opens files, returns memory that was never written, draws random numbers
(but dropout and `bernoulli_`), takes a storage apart, or was seen to crash on arguments that do
not fit, as `lstm.input` does.
"""

from __future__ import annotations

from typing import Final

# name.overload; without one, the overload is called "default".
_OPERATORS: Final = """
    __and__.Scalar __and__.Tensor __or__.Scalar __or__.Tensor __xor__.Scalar __xor__.Tensor
    _log_softmax _softmax _to_copy _upsample_nearest_exact1d _upsample_nearest_exact1d.vec
    _upsample_nearest_exact2d _upsample_nearest_exact2d.vec abs acos adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d add.Scalar add.Tensor add_.Scalar add_.Tensor addcdiv addcmul addmm
    addmv alias all all.dim all.dims alpha_dropout alpha_dropout_ amax amin aminmax any any.dim
    any.dims arange arange.start arange.start_step argmax argmin argsort argsort.stable asin
    atan atan2 avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bernoulli_.float bilinear
    bitwise_and.Scalar bitwise_and.Scalar_Tensor bitwise_and.Tensor
    bitwise_left_shift.Scalar_Tensor bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar
    bitwise_not bitwise_or.Scalar bitwise_or.Scalar_Tensor bitwise_or.Tensor
    bitwise_right_shift.Scalar_Tensor bitwise_right_shift.Tensor
    bitwise_right_shift.Tensor_Scalar bitwise_xor.Scalar bitwise_xor.Scalar_Tensor
    bitwise_xor.Tensor bmm broadcast_tensors broadcast_to cat cdist ceil celu celu_
    channel_shuffle chunk clamp clamp.Tensor clamp_ clamp_.Tensor clamp_max clamp_max.Tensor
    clamp_max_ clamp_max_.Tensor clamp_min clamp_min.Tensor clamp_min_ clamp_min_.Tensor clip
    clip.Tensor clone col2im constant_pad_nd contiguous conv1d conv1d.padding conv2d
    conv2d.padding conv3d conv3d.padding conv_transpose1d conv_transpose2d.input
    conv_transpose3d.input convolution copy_ cos cosh cosine_similarity count_nonzero
    count_nonzero.dim_IntList cummax cummin cumprod cumsum detach diagonal diff div.Scalar
    div.Scalar_mode div.Tensor div.Tensor_mode div_.Scalar div_.Scalar_mode div_.Tensor
    div_.Tensor_mode dot dropout dropout_ dstack einsum elu elu_ embedding eq.Scalar eq.Tensor
    erf erfc exp exp_ expand expand_as expm1 eye eye.m feature_alpha_dropout feature_dropout
    feature_dropout_ fill_.Scalar fill_.Tensor flatten.using_ints flip floor floor_divide
    floor_divide.Scalar fmod.Scalar fmod.Tensor full full_like gather ge.Scalar ge.Tensor gelu
    glu grid_sampler group_norm gt.Scalar gt.Tensor hardshrink hardsigmoid hardsigmoid_
    hardswish hardswish_ hardtanh hardtanh_ hstack hypot im2col index.Tensor index_add
    index_fill.int_Scalar index_fill.int_Tensor index_put index_put_ index_select instance_norm
    isfinite isinf isnan layer_norm le.Scalar le.Tensor leaky_relu leaky_relu_ lerp.Scalar
    lerp.Tensor lerp_.Scalar lerp_.Tensor lift_fresh_copy linalg_vector_norm linear linspace log
    log10 log1p log2 log_sigmoid log_softmax.int logaddexp logical_and logical_not logical_or
    logical_xor logsumexp lt.Scalar lt.Tensor mT masked_fill.Scalar masked_fill.Tensor
    masked_fill_.Scalar masked_fill_.Tensor matmul max max.dim max.other max_pool1d
    max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d
    max_pool3d_with_indices maximum mean mean.dim median median.dim meshgrid.indexing min
    min.dim min.other minimum mish mish_ mm movedim.int movedim.intlist mul.Scalar mul.Tensor
    mul_.Scalar mul_.Tensor mv nan_to_num nansum narrow narrow.Tensor native_group_norm
    native_layer_norm ne.Scalar ne.Tensor neg neg_ new_full new_ones new_zeros norm.Scalar
    norm.ScalarOpt_dim numpy_T one_hot ones ones_like outer pad permute pixel_shuffle
    pixel_unshuffle pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor pow_.Scalar pow_.Tensor prelu
    prod prod.dim_int ravel reciprocal relu relu6 relu6_ relu_ remainder.Scalar
    remainder.Scalar_Tensor remainder.Tensor repeat repeat_interleave.self_Tensor
    repeat_interleave.self_int reshape reshape_as rms_norm roll rot90 round round.decimals rsqrt
    rsub.Scalar rsub.Tensor scalar_tensor scaled_dot_product_attention scatter.src scatter.value
    scatter_.src scatter_.value scatter_add select.int selu selu_ sgn sigmoid sigmoid_ sign silu
    silu_ sin sinh slice.Tensor softmax.int softplus softshrink sort sort.Tensor sort.stable
    split split.Tensor split.sizes split_with_sizes sqrt sqrt_ square squeeze squeeze.dim
    squeeze.dims squeeze_ squeeze_.dim squeeze_.dims stack std std.correction std.dim std_mean
    std_mean.correction std_mean.dim sub.Scalar sub.Tensor sub_.Scalar sub_.Tensor sum
    sum.dim_IntList swapaxes swapdims sym_numel sym_size.int t take_along_dim tan tanh tanh_
    tensor_split.indices tensor_split.sections tensordot threshold threshold_ tile to.device
    to.dtype to.dtype_layout to.other topk transpose.int transpose_ tril triu true_divide.Scalar
    true_divide.Tensor trunc type_as unbind.int unflatten.int unfold unsafe_split.Tensor
    unsqueeze unsqueeze_ upsample_bicubic2d upsample_bicubic2d.vec upsample_bilinear2d
    upsample_bilinear2d.vec upsample_linear1d upsample_linear1d.vec upsample_nearest1d
    upsample_nearest1d.vec upsample_nearest2d upsample_nearest2d.vec upsample_nearest3d
    upsample_nearest3d.vec upsample_trilinear3d upsample_trilinear3d.vec var var.correction
    var.dim var_mean var_mean.correction var_mean.dim view view_as vstack where where.Scalar
    where.ScalarOther where.ScalarSelf where.self zero_ zeros zeros_like
"""

ATEN: Final = frozenset(_OPERATORS.split())
