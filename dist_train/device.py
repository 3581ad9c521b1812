"""What a rank computes on, and how: its device, the precision there, and float32 that is the same every time.

TF32 keeps 10 of the 23 bits of a float32's fraction in what is multiplied, which GPUs have faster circuits for. PyTorch rounds
convolutions so unless told otherwise, and matrix products not. Here both are rounded only where a run asks for it by name.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from dist_train import ranks
from dist_train.config import Config
from dist_train.errors import ConfigError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # what autocast computes in, by run.precision
NEED_A_GPU = ("tf32", "fp16")
FIRST_WITH_TF32 = (8, 0)  # compute capability


def open_accelerator(config: Config) -> Accelerator:
    """Joins the processes, on the device and in the precision of the config. Raises ConfigError when this machine has no such precision."""
    precision = config.run.precision
    patience = timedelta(minutes=config.run.timeout_minutes)
    group = InitProcessGroupKwargs(timeout=ranks.backstop(patience))
    cpu = device_of(config).type == "cpu"  # told so, accelerate joins CPU processes; left to guess, it does not
    if cpu and config.run.device == "cuda":
        raise ConfigError("run.device=cuda: torch finds no GPU here; see nvidia-smi and CUDA_VISIBLE_DEVICES, or ask for auto")
    if cpu:
        refuse_without_gpu(precision, "this run has none")
    if precision == "tf32" and torch.cuda.get_device_capability() < FIRST_WITH_TF32:
        raise ConfigError(f"run.precision=tf32 needs a GPU from Ampere on, and this is a {torch.cuda.get_device_name()}; use no or fp16")
    try:
        with ranks.joining(patience + timedelta(seconds=ranks.ALIKE)):
            accelerator = Accelerator(cpu=cpu, mixed_precision=precision if precision in HALF else "no", kwargs_handlers=[group])
    except ValueError as error:  # fp16 without a GPU, bf16 on a GPU that lacks it
        raise ConfigError(f"run.precision={precision} does not work on this machine ({error}); use bf16 or no") from error
    fix_arithmetic(precision)  # last: accelerate, told of a compiler by the environment, turns TF32 on
    return accelerator


def device_of(config: Config) -> torch.device:
    """Where this rank computes, or would."""
    if config.run.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def refuse_without_gpu(precision: str, none_there: str) -> None:
    """Raises ConfigError for a precision that would be float32 without a word where there is no GPU; `none_there` says who has none."""
    if precision in NEED_A_GPU:
        raise ConfigError(f"run.precision={precision} needs a GPU, and {none_there}; use bf16 or no")


def fix_arithmetic(precision: str) -> None:
    """Settles, for this process, what run.precision means for everything that stays in float32. On a CPU it changes nothing."""
    torch.backends.cudnn.benchmark = False  # it would choose another algorithm, and so another rounding, on every start
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
