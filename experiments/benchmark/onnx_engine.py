"""ONNX Runtime's side of a comparison: the network of torch, its batch norms folded, exported by torch.

Needs the extra `bench`. Inference alone, in float32, on the CPU.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from experiments.benchmark.cases import Workload
from experiments.benchmark.engine import Built
from experiments.benchmark.given import Network, given
from experiments.benchmark.torch_networks import ConvNorm
from experiments.benchmark.torch_twin import twin
from shuffle_jax.sharding import cores

ONNX = "ONNX Runtime"


def inference(work: Workload, network: Network) -> Built:
    """Logits of a batch, whose size is fixed in the program."""
    variables, images, _ = given(work, network)
    inputs = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # its own order, in memory as well
    model = session(exported(folded(twin(variables, network.config(), "cpu").eval()), torch.from_numpy(inputs)))
    case = partial(model.run, None, {model.get_inputs()[0].name: inputs})
    return Built({ONNX: case}, lambda: {"logits": case()[0]})


def session(program: bytes) -> onnxruntime.InferenceSession:
    """A program with every optimisation, on all cores that this process may use."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])


def folded(model: nn.Module) -> nn.Module:
    """The model in evaluation with every batch norm in the convolution before it."""
    for module in model.modules():
        if isinstance(module, ConvNorm):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.add_module("norm", nn.Identity())
    return model


def exported(model: nn.Module, images: torch.Tensor) -> bytes:
    """A model in evaluation as an ONNX program for so many images."""
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    assert program is not None  # it is where no file is named
    return program.model_proto.SerializeToString()
