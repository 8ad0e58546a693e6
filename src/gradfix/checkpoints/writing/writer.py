"""A checkpoint directory written one tensor at a time, under its name only when whole."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType

import torch

from gradfix.checkpoints.files import check_space, explain_os_errors, resolve_output, sync_directory
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.checkpoints.writing.atomic import refuse_existing
from gradfix.checkpoints.writing.background import Background, HashingFile, checked_blocks
from gradfix.checkpoints.writing.extras import add_extra_file
from gradfix.checkpoints.writing.layout import INDEX_FILE, SINGLE_FILE, FileLayout, index_content, plan_shards
from gradfix.checkpoints.writing.lock import OutputLock
from gradfix.checkpoints.writing.manifest import JSON, MANIFEST_FILE, RANK_MANIFESTS, new_manifest
from gradfix.checkpoints.writing.partial import abandon_partial, open_partial, publish_partial, verify_shards
from gradfix.errors import GradfixError
from gradfix.progress import Progress, silent
from gradfix.ranks import ranks

SHARD_SIZE = 5_000_000_000


class CheckpointWriter:
    """Context manager that streams tensors into a Hugging Face directory and commits it in one step.

    Data are hashed and written by a second thread. Until the end everything is in
    ``<output>.partial-<8 hexadecimal digits>``; leaving the context without an exception puts all of it on
    the disk and renames. With an exception nothing has the final name, and the partial directory stays if it
    has a shard to continue from. ``specs`` fixes the order: for each tensor that isn't in `done` call `write`
    (or `copy`), then `add_file` for everything else.

    Where ranks work together, all of them do so, and each writes some of the shards, whole; the first one alone locks,
    adds the other files, and commits once all have said that the disk has theirs.

    Args:
        output: The directory to be; its parent exists.
        specs: Dtype and shape of each tensor, in the order of writing.
        identity: What the output is made of (hashes of the inputs, alpha, …), as JSON values; an unfinished
            output made of something else is not continued.
        metadata: Free text for the shards' headers.
        shard_size: Most bytes of data in one file.
        single_file: Name of the file where one is enough.
        overwrite: Replace an existing checkpoint, which stays as it is until the new one is whole.
        resume: Continue an unfinished run if there is one.
        restart: Delete unfinished runs and begin anew.
        verify: Told the directory when it is complete, before it gets its name; if it raises, nothing is left.
        progress: Told about the checking of shards that an earlier run wrote.

    Attributes:
        done: Tensors that an earlier run wrote and that were verified on entering; skip them.
        facts: Tensor to JSON values worth keeping, the earlier run's included. Set a tensor's facts before
            writing the next one: they are saved in the manifest with its shard.
        partial: The directory being written; after an exception the one left behind, else None.
        nbytes: Size in bytes of all shards.
    """

    def __init__(
        self,
        output: Path,
        specs: Mapping[str, TensorSpec],
        *,
        identity: Mapping[str, JSON],
        metadata: Mapping[str, str] | None = None,
        shard_size: int = SHARD_SIZE,
        single_file: str = SINGLE_FILE,
        overwrite: bool = False,
        resume: bool = False,
        restart: bool = False,
        verify: Callable[[Path], None] | None = None,
        progress: Progress = silent,
    ) -> None:
        if resume and restart:
            raise GradfixError(f"{output}: --resume and --restart exclude each other; give one")
        self.output = Path(output)
        self.specs = dict(specs)
        self.done: set[str] = set()
        self.facts: dict[str, JSON] = {}
        self.partial: Path | None = None
        metadata = {"format": "pt"} if metadata is None else dict(metadata)
        self._shards = plan_shards(self.specs, shard_size, metadata, single_file)
        self._shard_of = {name: shard for shard in self._shards for name in shard.offsets}
        self._manifest = new_manifest(identity, shard_size, metadata, self._shards)
        self.nbytes = sum(shard.size for shard in self._shards)
        self._overwrite, self._resume, self._restart, self._progress = overwrite, resume, restart, progress
        self._verify = verify
        self._remaining: deque[str] = deque()
        self._files: list[HashingFile] = []
        self._open: FileLayout | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "CheckpointWriter":
        """Lock the output, take over what an earlier run wrote if asked, and make room.

        Returns:
            Itself.

        Raises:
            GradfixError: The output exists, is locked, was left unfinished, can't be written or doesn't fit.
        """
        self.output = resolve_output(self.output)
        with ExitStack() as stack:
            group = ranks()
            if group.first:
                self._open_output(stack)
            else:
                stack.callback(self._clean_up)
            taken = self.partial, self._manifest.shards, self._manifest.facts
            self.partial, self._manifest.shards, self._manifest.facts = group.gather("the output", taken)[0]
            self.done = {name for shard in self._manifest.shards.values() for name in shard}
            self.facts = dict(self._manifest.facts)
            self._remaining = deque(name for name in self.specs if name not in self.done)
            self._background = Background()
            stack.callback(self._background.stop)
            self._stack = stack.pop_all()
        return self

    def _open_output(self, stack: ExitStack) -> None:
        """Lock the output, and take over or make the directory to write into."""
        stack.enter_context(OutputLock(self.output))
        refuse_existing(self.output, self._overwrite)
        with explain_os_errors(self.output, "choose an output in a directory you may write to"):
            self.partial = open_partial(self.output, self._manifest, self._resume, self._restart)
            stack.callback(self._clean_up)  # before the lock is let go
            verify_shards(self.partial, self._shards, self.specs, self._manifest, self._progress)
            if self._manifest.shards:
                self._manifest.save(self.partial)  # with what other ranks wrote
            check_space(self.output, self._missing_bytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, or after an exception keep what can be continued."""
        with self._stack:  # stops the thread, cleans up, unlocks, whatever happens here
            if kind is None:
                with explain_os_errors(self.output, self._remedy):
                    self._commit()

    def write(self, name: str, blocks: Iterable[torch.Tensor], *, finite: bool = False) -> None:
        """Write a tensor from its rows.

        Args:
            name: The next of ``specs``; one in `done` is skipped without touching ``blocks``.
            blocks: Consecutive rows, each ``[rows, *shape[1:]]`` in the tensor's dtype; a scalar is one
                block. A block belongs to the writer from now on: the thread may still read it, so don't
                change it in place.
            finite: The caller knows that all numbers are finite: they are not looked at again.

        Raises:
            GradfixError: Not the next name; blocks that don't make up the tensor; an error of the disk, which
                may stem from an earlier tensor.
        """
        if name in self.done:
            return
        self._next(name)
        if not self._mine(self._shard_of[name]):
            self._remaining.popleft()
            return
        file, offset = self._files[-1], self._shard_of[name].offsets[name]
        self._submit(file, file.begin)
        for part in checked_blocks(str(self.output), name, self.specs[name], blocks, finite=finite):
            self._submit(file, partial(file.append, part, offset), len(part))
            offset += len(part)
        self._submit(file, partial(file.end, name))
        self._remaining.popleft()

    def finish_weights(self) -> None:
        """Wait until the disk has all weights, those of the other ranks included; then `facts` has all of theirs.

        Raises:
            GradfixError: Tensors were not written, or an error of the disk.
        """
        if self._remaining:
            raise GradfixError(
                f"{self.output}: {len(self._remaining)} of {len(self.specs)} tensors were not written, "
                f"the first is {self._remaining[0]!r}; write each of specs"
            )
        if not self.specs and not self._manifest.shards and ranks().first:
            self._open_shard(self._shards[0])  # a file with a header only
        self._finish_shard()
        self._background.drain()
        for shards, facts in ranks().gather("shards", (self._manifest.shards, self.facts)):
            self._manifest.shards = {**self._manifest.shards, **shards}
            self.facts = {**self.facts, **facts}
        self.facts = {name: self.facts[name] for name in self.specs if name in self.facts}

    def add_file(self, relative: str, content: bytes | Path) -> None:
        """Add a file that has no weights: config, tokenizer, model card.

        Args:
            relative: Path inside the output, with ``/``.
            content: Its bytes, or a file to copy.

        Raises:
            GradfixError: A path that leaves the output or is taken, or a file that can't be read or written.
        """
        if not ranks().first:
            return
        taken = {MANIFEST_FILE, INDEX_FILE, *(shard.file for shard in self._shards), *self._manifest.files}
        digest = add_extra_file(self._directory(), relative, content, taken, self._remedy)
        self._manifest.files[relative] = digest

    def add_folder(self, relative: str) -> None:
        """Make a folder inside the output, unless a file has made it.

        Args:
            relative: Path inside the output, with ``/``.
        """
        if not ranks().first:
            return
        folder = self._directory() / relative
        with explain_os_errors(folder, self._remedy):
            folder.mkdir(parents=True, exist_ok=True)
            sync_directory(folder.parent)

    def _directory(self) -> Path:
        if self.partial is None:
            raise GradfixError(f"{self.output}: not being written; use the writer inside its with-block")
        return self.partial

    def _missing_bytes(self) -> int:
        return sum(shard.size for shard in self._shards if shard.file not in self._manifest.shards)

    def _remedy(self) -> str:
        again = "continue with --resume" if self._manifest.shards else "run again"
        return f"{self._missing_bytes()} bytes are still to be written; when that is solved, {again}"

    def _next(self, name: str) -> None:
        """Check the order, and change shards when it is time."""
        if not self._remaining or self._remaining[0] != name:
            expected = repr(self._remaining[0]) if self._remaining else "no further tensor"
            raise GradfixError(
                f"{self.output}: expected {expected}, got {name!r}; write in the order of specs"
            )
        if self._shard_of[name] is not self._open and self._mine(self._shard_of[name]):
            self._finish_shard()
            self._open_shard(self._shard_of[name])

    def _mine(self, shard: FileLayout) -> bool:
        return ranks().mine(self._shards.index(shard))

    def _open_shard(self, layout: FileLayout) -> None:
        path = self._directory() / layout.file
        with explain_os_errors(path, self._remedy):
            self._files.append(HashingFile(path, layout.header))
        self._open = layout

    def _submit(self, file: HashingFile, job: Callable[[], None], nbytes: int = 0) -> None:
        def explained() -> None:
            with explain_os_errors(file.path, self._remedy):
                job()

        self._background.submit(explained, nbytes)

    def _finish_shard(self) -> None:
        """Queue what makes the open shard one to continue from."""
        if self._open is not None:
            file, layout = self._files[-1], self._open
            facts = {name: self.facts[name] for name in layout.offsets if name in self.facts}
            self._submit(file, partial(self._record_shard, file, layout, facts))
            self._open = None

    def _record_shard(self, file: HashingFile, layout: FileLayout, facts: dict[str, JSON]) -> None:
        size = file.sync()
        file.close()
        if size != layout.size:
            raise GradfixError(f"{file.path}: {size} bytes after writing {layout.size}; {self._remedy()}")
        shards = {**self._manifest.shards, layout.file: file.hashes}
        manifest = replace(self._manifest, shards=shards, facts={**self._manifest.facts, **facts})
        manifest.save(file.path.parent, ranks().rank)
        self._manifest = manifest

    def _commit(self) -> None:
        self.finish_weights()
        if ranks().first:
            self._publish(self._directory())
        self.partial = None
        ranks().gather("the output is there", None)

    def _publish(self, directory: Path) -> None:
        for left in directory.glob(RANK_MANIFESTS):
            left.unlink()
        if len(self._shards) > 1:
            content = index_content(self.specs, self._shards)
            digest = add_extra_file(directory, INDEX_FILE, content, set(), self._remedy)
            self._manifest.files[INDEX_FILE] = digest
        self._manifest.facts = dict(self.facts)
        self._manifest.complete = True
        self._manifest.save(directory)
        if self._verify is not None:
            try:
                self._verify(directory)
            except BaseException:
                self._manifest.shards = {}  # what is whole and wrong is nothing to continue from
                raise
        publish_partial(directory, self.output, self._overwrite)

    def _clean_up(self) -> None:
        """Leave a directory to continue from, or nothing; runs when the thread has stopped."""
        for file in self._files:
            file.close()
        if self.partial is not None and ranks().first:
            self.partial = abandon_partial(self.partial, self._manifest.shards)
