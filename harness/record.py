"""The nouns of a run. Frozen; everything that is judged, stored or reported is one of these."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.inputs import Generation, Message, Model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Finish = Literal["eos", "stop", "length"]
Status = Literal["passed", "failed", "error", "skipped"]
Padding = Literal["left", "right", "shipped"]
Kind = Literal[
    "generate", "replay", "likelihood", "score", "render", "bare_generate", "bare_config", "bare_pipeline", "processed"
]


@dataclass(frozen=True)
class Target:
    """One thing to load: a model at a quantization level. One row of a comparison."""

    name: str
    model_name: str
    model: Model
    quantization: str = "none"

    @property
    def axes(self) -> dict[str, str]:
        """The words by which `only` and `xfail` choose among targets."""
        return {
            "model": self.model_name,
            "quantization": self.quantization,
            "dtype": self.model.dtype,
            "attention": self.model.attention or "",
        }


@dataclass(frozen=True)
class Text:
    """What one prompt says once its row is filled in: text as it stands, chat messages, or token ids."""

    text: str | None = None
    messages: tuple[Message, ...] | None = None
    ids: tuple[int, ...] | None = None  # of what a completion held: to continue from it, or to look at it again
    continued: bool = False  # the last message is the model's own, to be gone on with

    @property
    def last(self) -> str:
        return (self.text or "") if self.messages is None else self.messages[-1].content


@dataclass(frozen=True)
class Batch:
    """A fixed batch: its rows are part of a request's identity, because neighbours change the numbers."""

    rows: tuple[Text, ...]
    padding: Padding = "left"
    attention_mask: bool = True
    pad_token_id: int | None = None  # another id to pad with than the model's own


@dataclass(frozen=True)
class Request:
    """One row to generate. Equal requests are generated once.

    layout: "any" leaves batching to the scheduler; "alone" is a batch of one; a Batch is exactly that batch.
    repeat: 0, 1, 2 … are different requests, really generated again.
    kind: generate; replay: the real generate(), in which each token is forced to be that of the continuation, while
    the distributions are kept; likelihood: how likely each token of the prompt's text is, after those before it;
    score: the argmax at each place of one forward pass over prompt and continuation, without
    cache; render: what the prompt pipeline makes of the prompt, nothing is generated; bare_…: the call as
    careless code makes it, whose effective config is the answer; processed: the first step's distribution
    before and after all logits processors.
    """

    prompt: Text
    generation: Generation
    layout: Literal["any", "alone"] | Batch = "any"
    repeat: int = 0
    fresh_process: bool = False
    kind: Kind = "generate"
    row: int | None = None  # which row of the Batch; None: the first that holds the prompt
    continuation: tuple[int, ...] = ()  # of kinds replay and score
    position_ids: bool = False  # of kind score: passed explicitly, counted from the mask
    attention: str = ""  # another attention implementation than the one that was loaded
    float32: bool = False  # with the weights cast to float32 for the while
    resume_after: int = 0  # so many tokens are generated first, then their cache is gone on with
    whole: bool = True  # of kind replay: the distributions are kept whole, in a file; else the top of them

    def replace(self, **changes: Any) -> Request:
        return dataclasses.replace(self, **changes)

    @cached_property
    def id(self) -> str:
        """Content id: the same request has the same id in every run."""
        text = json.dumps(to_data(self), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, name) for name in _REQUEST_FIELDS))

    def __hash__(self) -> int:
        # Requests are keys everywhere and hold whole prompts; hashing them once is worth the line.
        return self._hash


_REQUEST_FIELDS = tuple(field.name for field in dataclasses.fields(Request))


@dataclass(frozen=True)
class Step:
    """What was recorded at one generated token: raw log-probabilities, before any processor."""

    logprob: float
    top_ids: Sequence[int]  # arrays: a tuple of Python floats would cost five times the memory
    top_logprobs: Sequence[float]
    max_logit: float  # the largest: near it lies what rounding can flip


@dataclass(frozen=True)
class Distributions:
    """The logits of every step of one replay, before and after all processors: a file, for they are large."""

    path: Path
    steps: int
    vocabulary: int
    processed_too: bool = True  # else there was no processor, and the raw ones stand for both

    def raw(self, step: int) -> NDArray[np.float32]:
        """Over the whole vocabulary, before any processor."""
        return self._row(2 * step if self.processed_too else step)

    def processed(self, step: int) -> NDArray[np.float32]:
        """After all processors and warpers; -inf is what they cut off."""
        return self._row(2 * step + 1) if self.processed_too else self.raw(step)

    def _row(self, index: int) -> NDArray[np.float32]:
        import numpy as np

        size = 4 * self.vocabulary
        with self.path.open("rb") as file:
            file.seek(index * size)
            return np.frombuffer(file.read(size), np.float32)


@dataclass(frozen=True)
class Returned:
    """One of several sequences that one prompt was to return (num_return_sequences)."""

    ids: tuple[int, ...]
    text: str
    score: float | None = None  # of beam search


@dataclass(frozen=True)
class Rendering:
    """What a prompt pipeline makes of one prompt, and of the variations that show its faults.

    Where the prompt is plain text, or a variation raised, its field is None.
    """

    text: str  # as the model gets it
    ids: tuple[int, ...]  # as the model gets them
    ids_with_special: tuple[int, ...]  # the same text tokenised with special tokens added …
    ids_without_special: tuple[int, ...]  # … and without
    decoded: str  # the latter back to text
    chat: bool = False
    continues: bool = False  # the last message is the assistant's own, to be gone on with
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    tokenizer_size: int = 0  # its ids are below this
    embeddings: int | None = None  # that the model has; None: not known
    max_length: int | None = None  # to which the tokenizer truncates when asked to; None: not limited
    truncation_side: str = "right"
    without_generation_prompt: str | None = None
    on_another_date: str | None = None
    answer: str = ""  # what the assistant says in these two:
    continued: str | None = None  # an assistant's turn added, rendered with continue_final_message
    closed: str | None = None  # the same turn, closed by the template
    closing_ids: tuple[int, ...] = ()  # special tokens with which the template closes it: the first is to end the turn
    user_text: tuple[str, ...] = ()  # the contents of user and system messages, or the plain text
    special_in_user_text: tuple[str, ...] = ()  # special tokens that become themselves where user text spells them
    markup: tuple[str, ...] = ()  # what the template writes before a user's text, and between it and the answer
    system_added: str = ""  # what stands before the first turn although the prompt does not hold it
    system_refused: str = ""  # how the template does without a system message
    cleaned_up: str = ""  # what decoding as the tokenizer ships makes of PUNCTUATION, where it changes it
    raised: Mapping[str, str] = field(default_factory=dict)  # by the name of the variation


@dataclass(frozen=True)
class Completion:
    """What came back for one request."""

    request: Request
    prompt_text: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    text: str
    finish: Finish
    steps: tuple[Step, ...] = ()
    precision: str = "float32"  # the coarsest arithmetic on the way: float32, bfloat16 or float16
    generation_config: Mapping[str, Any] = field(default_factory=dict)  # effective, as generate() resolved it
    padding: str = ""  # the side this row was really padded on; "" when it was not padded
    pads: int = 0
    batch_size: int = 1
    split_after_oom: bool = False
    seconds: float = 0.0  # of the whole batch
    memory_bytes: int = 0  # the most that the process held meanwhile
    warnings: Mapping[str, int] = field(default_factory=dict)
    tail: tuple[int, ...] = ()  # what stands after the row's own end, where other rows went on
    cache: str = ""  # class of the key-value cache that was really used
    attention: str = ""  # implementation that was really used
    returned: tuple[Returned, ...] = ()  # all sequences, the first one included, when several were asked for
    rendering: Rendering | None = None  # of kind render
    raw_logits: Sequence[float] = ()  # of kind processed: the first step's, before all processors …
    processed_logits: Sequence[float] = ()  # … and after them
    processed_steps: tuple[Step, ...] = ()  # of kind replay: as `steps`, after all processors, where there are any
    distributions: Distributions | None = None  # of kind replay; its file is gone once the comparison is made

    @property
    def new_tokens(self) -> int:
        return len(self.ids)

    @property
    def own_seconds(self) -> float:
        """`seconds` is that of the whole batch and stands on each of its rows: each bears its share."""
        return self.seconds / self.batch_size


@dataclass(frozen=True)
class Failure:
    """A request that could not be answered; its checks are in error, the others go on."""

    request: Request
    kind: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """One sentence, and the numbers behind it."""

    status: Status
    reason: str
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    details: tuple[str, ...] = ()  # expected/got with the tokens around the difference


@dataclass(frozen=True)
class TargetFacts:
    """What a target really was once loaded: the effective values, not the ones asked for."""

    target: str
    device: str = ""
    dtype: str = ""
    attention: str = ""
    cache: str = ""
    tokenizer: str = ""
    padding_side: str = ""  # as shipped
    chat_template: bool = False
    pad_token_id: int | None = None
    pad_token_from: str = ""
    eos_token_ids: tuple[int, ...] = ()
    tokenizer_digest: str = ""  # of its vocabulary: equal digests, comparable ids
    template_digest: str = ""  # of the chat template
    context_window: int | None = None
    vocabulary: int = 0
    weights: str = ""  # where they were loaded from
    weights_digest: str = ""
    weight_bytes: int = 0
    modules: Mapping[str, int] = field(default_factory=dict)  # "Linear4bit/uint8": 210
    generation_config: Mapping[str, Any] = field(default_factory=dict)  # the model's own, as shipped
    autocast: bool = False
    traits: tuple[str, ...] = ()  # what some expectations do not apply to: encoder_decoder, dynamic_rope …
    load_seconds: float = 0.0
    held_before_bytes: int = 0  # by this process, before it was loaded
    load_peak_bytes: int = 0  # while loading, above that
    warnings: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One verdict of a run: a check's expectation on one target. One row of results."""

    check: str  # node id
    suite: str
    file: str
    line: int
    test: str
    target: str
    model: str
    quantization: str
    prompt: str  # "" for a check over all prompts of its test
    generation: str
    expectation: str
    verdict: Verdict
    xfail: str = ""
    marks: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()  # ids of the completions it was judged on
    text: str = ""
    new_tokens: int | None = None
    finish: str = ""
    seconds: float | None = None

    @property
    def outcome(self) -> str:
        """The status as a reader of the report sees it: known failures have a word of their own."""
        if self.xfail and self.verdict.status == "failed":
            return "xfailed"
        if self.xfail and self.verdict.status == "passed":
            return "xpassed"
        return self.verdict.status


def to_data(value: Any) -> Any:
    """Any noun as plain JSON data."""
    if isinstance(value, (Generation, Model, Message)):
        return value.model_dump(mode="json", exclude_defaults=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_data(item) for item in value]
    if isinstance(value, array):
        return value.tolist()
    return value
