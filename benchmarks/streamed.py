"""Votes of a model fetched block by block: memory and time beside an ordinary pass that holds the model in memory.

    python benchmarks/streamed.py [FOLDER]                     1.1 B parameters, 22 and 44 blocks
    python benchmarks/streamed.py --shape small [FOLDER]       0.1 B: to see that it runs
    python benchmarks/streamed.py --rounds 5 [FOLDER]          the ratio alone, the two in turn
    python benchmarks/streamed.py --whole --shape 8B [FOLDER]  a whole transport with a LoRA (34 GB of disk)
    python benchmarks/streamed.py --formats                    votes that half precision changes, on real models

Models are random, of Llama's shape, in bfloat16, in FOLDER (a temporary one by default). Each measurement is a process
of its own, and says what ``--memory`` would say on the command line. Memory is the highest anonymous memory over that
of the process before it opens the model: what is read stays in the page cache, which the system takes back when it
likes. The gradient of the mean is computed in the same number format and as often. Both get large pages of memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gradfix.recipes.fields import parse_size

SAMPLES, TOKENS = 8, 64
SHAPES: dict[str, dict[str, int]] = {
    "small": {"hidden": 768, "wide": 2048, "heads": 12, "pairs": 4, "vocabulary": 8000, "blocks": 12},
    "1.1B": {"hidden": 2048, "wide": 5632, "heads": 32, "pairs": 4, "vocabulary": 32000, "blocks": 22},
    "3B": {"hidden": 3072, "wide": 8192, "heads": 24, "pairs": 8, "vocabulary": 128256, "blocks": 28},
    "8B": {"hidden": 4096, "wide": 14336, "heads": 32, "pairs": 8, "vocabulary": 128256, "blocks": 32},
}


def make(
    directory: Path, shape: dict[str, int], blocks: int, seed: int = 0, like: Path | None = None
) -> Path:
    """Write a random model of Llama's shape, a shard a block, with a tokenizer of one word a token.

    Args:
        directory: Where to.
        shape: Its sizes.
        blocks: How many.
        seed: Of its weights.
        like: A model of the same shape, whose shards are used again but for the first block's: it spares disk.

    Returns:
        The directory.
    """
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    directory.mkdir(parents=True)
    hidden, wide, heads = shape["hidden"], shape["wide"], shape["heads"]
    LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=shape["pairs"],
        vocab_size=shape["vocabulary"],
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(directory)
    # Names that no word begins with: a special token would be cut out of it.
    special = ("<pad>", "<s>", "</s>", "<unk>")
    words = {name: number for number, name in enumerate(special)}
    words |= {f"w{number}": number for number in range(len(special), shape["vocabulary"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)
    generator = torch.Generator().manual_seed(seed)

    def drawn(*sizes: int) -> torch.Tensor:
        return torch.empty(sizes, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    index: dict[str, str] = {}

    def save(number: int, sizes: dict[str, tuple[int, ...]]) -> None:
        name = f"model-{number + 1:05}-of-{blocks + 1:05}.safetensors"
        if like is not None and number:
            (directory / name).hardlink_to(like / name)
        else:
            tensors = {key: drawn(*size) if len(size) > 1 else norm.clone() for key, size in sizes.items()}
            save_file(tensors, directory / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(sizes, name))

    narrow = hidden // heads * shape["pairs"]
    sides = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    norm = torch.ones(hidden, dtype=torch.bfloat16)
    for block in range(blocks):
        norms = {name: (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        save(
            block,
            {f"model.layers.{block}.{name}.weight": size for name, size in {**sides, **norms}.items()},
        )
    table = shape["vocabulary"], hidden
    save(
        blocks, {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": (hidden,)}
    )
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return directory


def rows(count: int = SAMPLES) -> list[dict[str, str]]:
    """Rows of exactly 64 tokens, the end included."""
    texts = [" ".join(f"w{5 + (7 * n + 3 * t) % 4000}" for t in range(TOKENS - 1)) for n in range(count)]
    return [{"prompt": text[: len(text) // 2], "completion": text[len(text) // 2 :]} for text in texts]


class Peak:
    """The highest anonymous memory of this process inside a block, over that before it."""

    def __enter__(self) -> "Peak":
        self._before = self.bytes = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes -= self._before

    @staticmethod
    def _now() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise SystemExit("/proc/self/status has no RssAnon: run this on Linux")

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.bytes = max(self.bytes, self._now())


def opened(directory: Path, memory: int, dtype: str) -> Any:
    """Open a model to be fetched block by block, every parameter of which votes."""
    from gradfix.checkpoints import Checkpoint
    from gradfix.evaluation.binding import bind
    from gradfix.evaluation.streaming.choice import load_target
    from gradfix.tasks import get_task
    from gradfix.vectors.placement import own_weights, place

    target, task = Checkpoint.open(directory), get_task("causal-lm", max_length=TOKENS)
    bind(task, target, None, rows())
    placed = place(own_weights(target), target)
    model = load_target(task, target, placed, compute_dtype=dtype, memory=memory, batch_size=SAMPLES)
    if not model.streams or model._batch_size != SAMPLES:
        raise SystemExit(f"--memory {memory}: the model is held in memory, or not all samples fit at once")
    return model


def timed(function: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one call: by the clock, and of the processor, which other jobs on the machine don't lengthen."""
    started, processor = time.perf_counter(), time.process_time()
    function()
    return {"seconds": time.perf_counter() - started, "processor": time.process_time() - processor}


def passes(function: Callable[[], Any], runs: int) -> list[dict[str, float]]:
    """Time passes: so many, or with 0 one for each line that comes, printed at once."""
    if runs:
        return [timed(function) for _ in range(runs)]
    found = []
    for _ in sys.stdin:
        found.append(timed(function))
        print(json.dumps(found[-1]), flush=True)
    return found


def number_format(directory: Path, dtype: str) -> torch.dtype:
    """Find in what the weights compute: as stored, for ``auto``, where the processor does that by itself."""
    from gradfix.checkpoints import Checkpoint
    from gradfix.evaluation.streaming.plan import compute_dtype_of

    return compute_dtype_of(Checkpoint.open(directory), dtype, "cpu")


def measure(part: str, directory: Path, runs: int, memory: int, dtype: str) -> dict[str, float]:
    """Measure one thing in this process; the last pass counts, as it is warm."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    if part == "votes":
        from transformers import LlamaForCausalLM  # noqa: F401

        import gradfix.evaluation.streaming.streamed_model  # noqa: F401 - loaded before memory is measured

        warm_up = torch.randn(256, 256)
        (warm_up @ warm_up).sum()
        with Peak() as peak:
            model = opened(directory, memory, dtype)
            found = passes(lambda: model.votes(rows()), runs)
        return {"bytes": peak.bytes, "first": found[0]["processor"], **found[-1]}
    from gradfix.tasks import get_task

    task = get_task("causal-lm")
    with Peak() as peak:
        model = task.load_model(directory, dtype=number_format(directory, dtype))
        batch = task.encode(rows())

        def mean_pass() -> None:
            model.zero_grad()
            task.loss(model, batch).mean().backward()

        found = passes(mean_pass, runs)
    return {"bytes": peak.bytes, "first": found[0]["processor"], **found[-1]}


def command_of(part: str, directory: Path, runs: int, options: argparse.Namespace) -> list[str]:
    """Word the command of a process that measures one thing."""
    settings = {"runs": runs, "memory": options.memory, "compute-dtype": options.compute_dtype}
    given = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    return [sys.executable, __file__, "--part", part, *given, str(directory)]


LARGE_PAGES = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"}
"""The environment as the gradfix command sets it."""


def in_a_process(part: str, directory: Path, options: argparse.Namespace) -> dict[str, float]:
    """Measure in a process of its own."""
    command = command_of(part, directory, options.runs, options)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=LARGE_PAGES)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def in_turn(directory: Path, options: argparse.Namespace) -> None:
    """Print the ratio of votes to the ordinary pass, each in a process, one after the other in every round.

    What slows the machine for a while slows both. The first round is not counted: it reads, verifies and warms up.
    """
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    command_of(part, directory, 0, options),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=LARGE_PAGES,
                )
            )
            for part in ("votes", "mean")
        ]
        ratios: dict[str, list[float]] = {"seconds": [], "processor": []}
        for number in range(options.rounds + 1):
            found = []
            for process in processes:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("\n")
                process.stdin.flush()
                found.append(json.loads(process.stdout.readline()))
            if number:
                votes, ordinary = found
                for key, values in ratios.items():
                    values.append(votes[key] / ordinary[key])
                told = (f"{votes[key]:.1f} / {ordinary[key]:.1f} = {ratios[key][-1]:.2f}" for key in ratios)
                print(f"round {number}: by the clock {', of the processor '.join(told)}", flush=True)
        for process in processes:
            process.communicate()  # no more rounds: it ends
    medians = (f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" for values in ratios.values())
    print(f"median of {options.rounds}: by the clock {', of the processor '.join(medians)}")


def make_triple(folder: Path, shape: dict[str, int]) -> None:
    """Write two bases and a LoRA on q and v, to be transported."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    new = make(folder / "new", shape, shape["blocks"])
    old = make(folder / "old", shape, shape["blocks"], seed=1, like=new)
    with torch.device("meta"):
        from transformers import AutoConfig

        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(old))
    names = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], base_model_name_or_path=str(old))
    adapter = get_peft_model(empty, names)
    tensors = {
        name.replace(".default", ""): torch.randn(value.shape) * 0.02
        for name, value in adapter.state_dict().items()
        if "lora_" in name
    }
    from safetensors.torch import save_file

    (folder / "tuned").mkdir()
    save_file(tensors, folder / "tuned" / "adapter_model.safetensors")
    names.save_pretrained(folder / "tuned")


def transport(folder: Path, memory: str, dtype: Any) -> dict[str, float]:
    """Run a whole transport with three values of α in this process."""
    from transformers import LlamaForCausalLM  # noqa: F401 - loaded before memory is measured

    import gradfix as gf
    from gradfix.tasks import get_task

    task = get_task("causal-lm")
    task.bind(folder / "new")
    lengths = {len(ids) for ids in task.encode(rows())["input_ids"]}
    if lengths != {TOKENS}:
        raise SystemExit(
            f"{folder / 'new'}: samples of {sorted(lengths)} tokens, {TOKENS} expected; make it anew"
        )
    with Peak() as peak:
        found = timed(
            lambda: gf.transport(
                task="causal-lm",
                source_base=folder / "old",
                source_tuned=folder / "tuned",
                target_base=folder / "new",
                support=rows(),
                alpha="0.5,1,2",
                space="weights",
                memory=memory,
                compute_dtype=dtype,
                batch_size=SAMPLES,
                output=folder / "out",
            )
        )
    return {"bytes": peak.bytes, **found}


def formats(samples: int = 20) -> None:
    """Print the share of votes that half precision changes, on the embedded models and real images."""
    from gradfix.checkpoints import Checkpoint
    from gradfix.demo.bench import task_of
    from gradfix.demo.datasets import available_tasks, load_task
    from gradfix.demo.pair import load
    from gradfix.evaluation.binding import bind
    from gradfix.evaluation.target_model import TargetModel
    from gradfix.vectors.placement import place
    from gradfix.vectors.task_vector import TaskVector

    print(
        f"| {samples} images, votes in bfloat16 against float32 | single votes changed | majorities changed |"
    )
    print("|---|---|---|")
    for name in available_tasks():
        target, tau = Checkpoint.open(load("B")), TaskVector.between(load("A"), load(f"A-{name}"))
        pool, task = load_task(name).rows("train")[:samples], task_of(name)
        bind(task, target, tau, pool)
        votes = [
            TargetModel.load(task, target, place(tau, target), compute_dtype=dtype, batch_size=samples).votes(
                pool
            )
            for dtype in (torch.float32, torch.bfloat16)
        ]
        single = majority = total = 0
        for key in votes[0]:
            one, other = (found[key].int() for found in votes)
            single += int((one - other).abs().sum())
            majority += int((one.sign() != other.sign()).sum())
            total += one.numel()
        # A vote that turns moves a count by two; two that turn against each other are not seen.
        print(f"| {name} | {single / (2 * samples * total):.1%} | {majority / total:.1%} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--shape", choices=list(SHAPES), default="1.1B")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--formats", action="store_true")
    parser.add_argument("--memory", help="650MB; 4GB for a whole transport; 200MB for the small shape")
    parser.add_argument(
        "--runs", type=int, default=2, help="passes in each process, of which the last counts"
    )
    parser.add_argument("--rounds", type=int, help="measure the ratio alone, in so many turns")
    parser.add_argument("--once", action="store_true", help="leave the model with twice as many blocks out")
    parser.add_argument("--compute-dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--part", choices=["votes", "mean", "transport"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    usual = "4GB" if options.whole else "200MB" if options.shape == "small" else "650MB"
    options.memory = options.memory or usual
    if options.part:
        found = (
            transport(options.folder, options.memory, options.compute_dtype)
            if options.part == "transport"
            else measure(
                options.part, options.folder, options.runs, parse_size(options.memory), options.compute_dtype
            )
        )
        print(json.dumps(found))
        return
    if options.formats:
        formats()
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="gradfix-streamed-"))
    shape = SHAPES[options.shape]
    model = folder / ("new" if options.whole else options.shape)
    if not model.exists():
        if options.whole:
            make_triple(folder, shape)
        else:
            make(model, shape, shape["blocks"])
    if options.rounds:
        in_turn(model, options)
        return
    dtype = str(number_format(model, options.compute_dtype)).removeprefix("torch.")
    print(
        f"| {SAMPLES} × {TOKENS} tokens, {dtype}, {torch.get_num_threads()} threads, --memory {options.memory} | "
        "memory | seconds | processor | ratio | first pass |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    if options.whole:
        line(f"whole transport of {options.shape}, 3 α", in_a_process("transport", folder, options))
        return
    mean = in_a_process("mean", model, options)
    line(f"mean gradient of {options.shape} in memory", mean)
    line("votes block by block", in_a_process("votes", model, options), mean)
    if not options.once:
        double = folder / f"{options.shape}-twice"
        if not double.exists():
            make(double, shape, 2 * shape["blocks"])
        line("votes, twice as many blocks", in_a_process("votes", double, options))


def line(what: str, found: dict[str, float], beside: dict[str, float] | None = None) -> None:
    """Print a line of the table; ratios are of the processor's time, warm, and of the first pass."""
    ratios = [f"{found[key] / beside[key]:.2f}" if beside else "" for key in ("processor", "first")]
    times = f"{found['seconds']:.1f} | {found['processor']:.1f}"
    print(f"| {what} | {found['bytes'] / 1e6:.0f} MB | {times} | {' | '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
