"""A model that says what the suite tells it to: for trying out suites, and for the harness's own tests.

Tokens are words with the white space before them; ids are a stable hash of the word.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from harness.backends import Progress
from harness.backends.quantizations import quantized
from harness.errors import CannotRun, InvalidRequest, NotSupported
from harness.inputs import GREEDY, ScriptedCompletion
from harness.record import Batch, Completion, Failure, Request, Step, Target, TargetFacts

VOCABULARY = 2**20
EOS = 0
LOGIT = 27.0  # of the chosen token: a usual height, where one ulp of bfloat16 is 0.125


def load(target: Target, *, top_k: int, progress: Progress) -> Scripted:
    return Scripted(target)


def words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\s*\S+|\s+$", text))


def token_id(word: str) -> int:
    return 1 + zlib.crc32(word.encode("utf-8", "surrogatepass")) % (VOCABULARY - 1)


class Scripted:
    """Answers each request with the first line of its script that fits."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.side = target.model.padding_side or "right"
        script = target.model.completions or ()
        self.vocabulary = {EOS: None} | {token_id(word): None for line in script for word in words(line.text)}
        dtype = "float32" if target.model.dtype == "auto" else target.model.dtype
        self.facts = TargetFacts(
            target=target.name,
            device="scripted",
            dtype=dtype,
            tokenizer="words",
            padding_side=self.side,
            eos_token_ids=(EOS,),
            vocabulary=VOCABULARY,
            weights="the suite",
        )

    def length(self, request: Request) -> int:
        return len(words(request.prompt.last))

    def generate(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        return [self._answer(request, len(requests)) for request in requests]

    def texts(self, ids: Sequence[int]) -> list[str]:
        said = {token_id(word): word for line in self.target.model.completions or () for word in words(line.text)}
        return ["<eos>" if token == EOS else said.get(token, "") for token in ids]

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, request: Request, rows: int) -> Completion | Failure:
        if request.kind != "generate" or request.prompt.ids is not None or request.resume_after:
            return Failure(request, NotSupported.kind, "a scripted model has no weights and no tokenizer to look into")
        try:
            line = self._line(request)
        except CannotRun as error:
            return Failure(request, error.kind, str(error))
        if line.error is not None:
            return Failure(request, "error", line.error)
        return self._complete(request, line, rows)

    def _line(self, request: Request) -> ScriptedCompletion:
        for line in self.target.model.completions or ():
            if self._fits(line, request):
                return line
        raise InvalidRequest(
            f"the script of model {self.target.model_name!r} has no completion for {request.prompt.last!r}",
            "Add one under `completions`; one without `prompt` answers everything.",
        )

    def _fits(self, line: ScriptedCompletion, request: Request) -> bool:
        side, pads = self._padding(request)
        wanted = (
            (line.prompt, request.prompt.last),
            (line.quantization, self.target.quantization),
            (line.padding, side if pads else ""),
            (line.batched, isinstance(request.layout, Batch)),
            (line.repeat, request.repeat),
        )
        return all(want is None or want == got for want, got in wanted)

    def _padding(self, request: Request) -> tuple[str, int]:
        if not isinstance(request.layout, Batch):
            return "", 0
        side = self.side if request.layout.padding == "shipped" else request.layout.padding
        longest = max(len(words(row.last)) for row in request.layout.rows)
        pads = longest - self.length(request)
        return (side, pads) if pads else ("", 0)

    def _complete(self, request: Request, line: ScriptedCompletion, rows: int) -> Completion:
        limit = request.generation.max_new_tokens or 20
        tokens = words(line.text)[: limit - (line.finish == "eos")]
        finish = line.finish if len(tokens) == len(words(line.text)) else "length"
        ids = tuple(map(token_id, tokens))
        shown = tokens
        if finish == "eos":
            ids, shown = (*ids, EOS), (*tokens, "<eos>")
        side, pads = self._padding(request)
        return Completion(
            request=request,
            prompt_text=request.prompt.last,
            prompt_ids=tuple(map(token_id, words(request.prompt.last))),
            ids=ids,
            tokens=shown,
            text="".join(tokens),
            finish=finish,
            steps=tuple(self._step(token, float(line.margin)) for token in ids),
            precision="bfloat16" if quantized(self.target.quantization) else self.facts.dtype,
            generation_config=GREEDY.arguments() | request.generation.arguments() | {"eos_token_id": EOS},
            padding=side,
            pads=pads,
            batch_size=len(request.layout.rows) if isinstance(request.layout, Batch) else rows,
        )

    def _step(self, token: int, margin: float) -> Step:
        # Every other word of the script is a runner-up: whatever another line says, the margin is this line's.
        chosen = -0.1
        runners = tuple(word for word in self.vocabulary if word != token)
        return Step(chosen, (token, *runners), (chosen, *[chosen - margin] * len(runners)), LOGIT)
