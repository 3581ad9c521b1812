"""How float32 is computed on a GPU: by convolutions that do the same every time, and rounded to TF32 only where a run asks for it by name.

TF32 keeps 10 of the 23 bits of a float32's fraction in what is multiplied, which GPUs have faster circuits for. PyTorch rounds
convolutions so unless told otherwise, and matrix products not.
"""

from __future__ import annotations

import torch

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # what autocast computes in, by run.precision
NEED_A_GPU = ("tf32", "fp16")
FIRST_WITH_TF32 = (8, 0)  # compute capability


def fix_arithmetic(precision: str) -> None:
    """Settles, for this process, what run.precision means for everything that stays in float32. On a CPU it changes nothing."""
    torch.backends.cudnn.benchmark = False  # it would choose another algorithm, and so another rounding, on every start
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
