"""Builds the C kernels; without a C compiler the package falls back to their NumPy twin."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "pemncodec.kernels._native",
            sources=["pemncodec/kernels/_native.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            optional=True,
            extra_compile_args=["-O3"],
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
