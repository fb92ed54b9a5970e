"""For the tests, on Python's path: accelerate shards with FSDP on CPU processes too, over gloo, and
in bfloat16.

PyTorch does; accelerate and transformers ask for GPUs first. Python imports this module when it
starts.
"""

import os

if os.environ.get("ACCELERATE_USE_FSDP") == "true" and "RANK" in os.environ:
    import transformers.training_args
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    stock = AcceleratorState.__init__

    def as_if_on_gpus(self, *args, **kwargs):
        if PartialState(cpu=True).distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        stock(self, *args, **kwargs)

    AcceleratorState.__init__ = as_if_on_gpus
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
