"""Preference pairs: of two replies to one prompt, the model is to prefer the chosen one.

====== ============================================ =====
name   is                                           shape
====== ============================================ =====
r      log π(chosen) − log π(rejected), in nats     [B]
r_ref  the same of the reference, which is θ_B      [B]
====== ============================================ =====
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid
from typing_extensions import override

from gradfix.errors import GradfixError, option
from gradfix.tasks.base import Batch, Measured, RowLike, register
from gradfix.tasks.chat import common_length, spoken
from gradfix.tasks.conversations import columns_of
from gradfix.tasks.data import origin, row_hash
from gradfix.tasks.forward import placed
from gradfix.tasks.language_model import LanguageModel, Spoken
from gradfix.tasks.metrics import Totals, as_values
from gradfix.tasks.preference_rows import PROMPTS, Pair, pair_of

CHOSEN, REJECTED = "chosen", "rejected"
BETA = 0.1
"""Of Rafailov et al., and of the libraries since."""


@register
class PreferencePairs(LanguageModel):
    """Pairs of replies to one prompt, of models of ``AutoModelForCausalLM``.

    The loss of a pair is −log σ(β (r − r_ref)): that of Rafailov et al., "Direct Preference Optimization" (2023), with
    the new base itself as the reference. Its r_ref is counted once, before anything moves the model, and kept by row
    (`keep_reference`). At θ_B the gradient is −β/2 ∇r, so that the votes are the signs of the log-ratio's gradient.
    A model that stands alone, as for ``evaluate``, is held against a reference to which all replies are alike, r_ref =
    0; the metric is then the share of pairs whose chosen reply has the higher probability.

    The metric is the share of pairs in which the chosen reply gained more than the rejected one (reward accuracy; pairs
    that rounding can't tell apart count half, as all do at θ_B). Tokens that both replies begin with cancel out, and
    are not counted.

    Replies are texts, with the prompt in a column of its own, or conversations that begin with it (see
    `gradfix.tasks.preference_rows`).

    Args:
        chosen: The column with the reply to prefer, or with a conversation that ends in it.
        rejected: The column with the other one.
        prompt: The column with the prompt; recognised by itself, and not needed where the replies hold it.
        input: The column with what the prompt is about, put after it.
        beta: β, how far a pair may pull the model from the reference.
        chat: Use the tokenizer's chat template; by default if it has one.
        max_length: Longest sample in tokens; the model's context by default.
    """

    name = "preference-pairs"
    metric = "reward_accuracy"
    answer = CHOSEN
    instead = "texts"
    rows_are = "preference pairs: the loss is DPO's, held against the new base"

    def __init__(
        self,
        chosen: str = CHOSEN,
        rejected: str = REJECTED,
        prompt: str | None = None,
        input: str | None = None,
        *,
        beta: float = BETA,
        chat: bool | None = None,
        max_length: int | None = None,
    ) -> None:
        if not beta > 0:
            raise GradfixError(f"{option('beta')}: expected a number above 0, found {beta}")
        columns = {"prompt": prompt, "input": input, CHOSEN: chosen, REJECTED: rejected}
        super().__init__(columns, chat=chat, max_length=max_length)
        self.beta = beta
        self._named = prompt is not None
        self._reference: dict[str, float] = {}
        self._alone = False

    def stand_alone(self) -> None:
        """Measure a model by itself, held against a reference to which all replies are alike."""
        self._alone, self._reference = True, {}
        self.metric = "preference_accuracy"

    def keep_reference(self, rows: Sequence[RowLike], ratios: Tensor) -> None:
        """Keep what the new base itself makes of samples: losses are held against it from now on.

        Args:
            rows: The samples.
            ratios: r_ref of each, in the same order.
        """
        self._reference |= zip(map(self._key, rows), ratios.tolist(), strict=True)

    def _key(self, row: RowLike) -> str:
        return row_hash(row, [column for column in (*self.columns.values(), "tools") if column in row])

    @override
    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without two replies to one prompt."""
        super().check(rows, support=support)
        self._pairs(rows)

    def _pairs(self, rows: Sequence[RowLike]) -> list[Pair]:
        if not self._named:
            known = columns_of(rows)
            found = next((column for column in PROMPTS if column in known), None)
            self.columns |= {} if found is None else {"prompt": found}
            if found == "instruction" and "input" in known:
                self.columns.setdefault("input", "input")
            self._named = True
        self._column(rows, CHOSEN), self._column(rows, REJECTED)  # refuse rows without
        prompt, about = self.columns.get("prompt", ""), self.columns.get("input", "")
        replies = [self.columns[CHOSEN], self.columns[REJECTED]]
        pairs = [
            pair_of(
                row.get(prompt),
                row.get(about),
                {column: row[column] for column in replies},
                origin(row, position),
                written_out=self.chat,
            )
            for position, row in enumerate(rows)
        ]
        if not all(pair.texts for pair in pairs):
            self.require_template()
        return pairs

    def _sides(self, rows: Sequence[RowLike]) -> list[tuple[Spoken, Spoken]]:
        """The tokens of both conversations of each row; what they have in common at their beginning is no reply."""
        found = []
        for position, (row, pair) in enumerate(zip(rows, self._pairs(rows), strict=True)):
            # A text that holds its own prompt is laid out already.
            template = self.chat and not (pair.texts and not pair.chosen[0]["content"])
            one, other = (
                self.spoken(messages, origin(row, position), tools=row.get("tools"), template=template)
                for messages in (pair.chosen, pair.rejected)
            )
            same = common_length(one[0], other[0])
            sides = _after(one, same), _after(other, same)
            for name, (_, said) in zip((CHOSEN, REJECTED), sides, strict=True):
                if not any(said):
                    raise GradfixError(
                        f"{origin(row, position)}: column {self.columns[name]!r}: has no token beyond those that both "
                        "replies begin with; leave this row out"
                    )
            found.append(sides)
        return found

    @override
    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Tokenise both conversations of each row; those of the rejected replies have names of their own."""
        one, other = zip(*self._sides(rows), strict=True)
        chosen, rejected = (self.padded(list(side), rows, strict=strict) for side in (one, other))
        cut = chosen["truncated"] | rejected["truncated"]
        unknown = 0.0 if self._alone else torch.nan  # a loss that is held against nothing is no number
        reference = [self._reference.get(self._key(row), unknown) for row in rows]
        return {
            **chosen,
            **{f"{REJECTED}.{name}": value for name, value in rejected.items() if name != "truncated"},
            "truncated": cut,
            "reference": torch.tensor(reference),
        }

    def _log_probability(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Of each reply, summed over its tokens: ``[B]`` float32."""
        logits: Tensor = model(**placed(model, batch)).logits
        labels = batch["labels"][:, 1:].to(logits.device)
        scores = logits[:, :-1].float().transpose(1, 2)
        return -cross_entropy(scores, labels, reduction="none", ignore_index=-100).sum(dim=1)

    def log_ratios(self, model: nn.Module, batch: Batch) -> Tensor:
        """Tell how much more probable the chosen replies are than the rejected ones.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            r, ``[B]`` float32, differentiable.
        """
        chosen, rejected = self._replies(model, batch)
        return chosen - rejected

    def _replies(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The log-probabilities of both replies of each pair."""
        return self._log_probability(model, _side(batch, "")), self._log_probability(
            model, _side(batch, f"{REJECTED}.")
        )

    def _losses(self, ratios: Tensor, batch: Batch) -> Tensor:
        return -logsigmoid(self.beta * (ratios - batch["reference"].to(ratios.device)))

    @override
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of each pair."""
        return self._losses(self.log_ratios(model, batch), batch)

    @override
    def run_once(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model on the chosen replies."""
        return self._log_probability(model, _side(batch, ""))

    @override
    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The last hidden states of the chosen conversations, averaged over real tokens."""
        return super().features(model, _side(batch, ""))

    @override
    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Losses, which reply is preferred, and by how much."""
        chosen, rejected = self._replies(model, batch)
        ratios = chosen - rejected
        margins = ratios - batch["reference"].to(ratios.device)
        rounding = _ROUNDING * (chosen.abs() + rejected.abs())
        signs = torch.where(margins.abs() <= rounding, torch.zeros_like(margins), margins.sign())
        scores = (signs + 1) / 2
        names = {1: CHOSEN, 0: "neither", -1: REJECTED}
        return Measured(
            self._losses(ratios, batch),
            scores,
            [names[int(sign)] for sign in signs.tolist()],
            statistics=torch.stack([scores, margins, (ratios > 0).float()], dim=1),
        )

    @override
    def totals(self, statistics: Tensor) -> Totals:
        """Reward accuracy, the mean margin in nats, and how often the chosen reply is the more probable one."""
        scores, margins, preferred = as_values(statistics).T
        also = {"margin": float(margins.mean())}
        if not self._alone:
            also["preference_accuracy"] = float(preferred.mean())
        return Totals(scores, also)

    @override
    def shown(self, row: RowLike) -> tuple[dict[str, Any], str]:
        """What both conversations have in common, and the two replies."""
        (pair,) = self._pairs([row])
        replies = {
            side: "\n".join(spoken(message["content"]) for message in messages[pair.same :])
            for side, messages in ((CHOSEN, pair.chosen), (REJECTED, pair.rejected))
        }
        before = [
            {"role": message["role"], "content": spoken(message["content"])}
            for message in pair.chosen[: pair.same]
        ]
        return {"messages": before, **replies}, CHOSEN

    @override
    def rendered(self, row: RowLike) -> str:
        """Both conversations as the model reads them, what they share once; the replies stand between ⟦ and ⟧."""
        ((one, other),) = self._sides([row])
        same = min(said.index(True) for _, said in (one, other))
        shared = self.tokenizer.decode(one[0][:same])
        chosen, rejected = (self.marked(ids[same:], said[same:]) for ids, said in (one, other))
        return f"{shared}{chosen} rather than {rejected}"

    @override
    def size(self, row: RowLike) -> int:
        """The characters of the longer conversation."""
        return max(len(str(row.get(self.columns[side]))) for side in (CHOSEN, REJECTED))


_ROUNDING = 8 * torch.finfo(torch.float32).eps
"""Of a sum of log-probabilities, in units of itself: two passes over one sample in float32 differ by less."""


def _after(side: Spoken, same: int) -> Spoken:
    """Leave the first tokens of a sample out of what is predicted."""
    ids, said = side
    return ids, [spoken and place >= same for place, spoken in enumerate(said)]


def _side(batch: Batch, prefix: str) -> Batch:
    """The inputs and labels of one side of a batch."""
    return {name: batch[prefix + name] for name in ("input_ids", "attention_mask", "labels")}
