"""The nouns of a suite file: what `load` makes of the YAML. Frozen."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, StrictInt, StrictStr, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from harness.expectations import Expect
from harness.inputs import GREEDY, Attention, Dtype, Frozen, Generation, Level, Model, Name, Number, Prompt, either


def _once(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
    twice = next((value for value in values or () if (values or ()).count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is listed twice; keep one of them")
    return values


Once = AfterValidator(_once)
Names = Annotated[tuple[Name, ...], Field(min_length=1), Once]


class Where(Frozen):
    """Which targets (and prompts) are meant: all of these must fit; a list means any of it."""

    model: Names | None = Field(None, description="Names of models.")
    quantization: tuple[Level, ...] | None = Field(None, min_length=1, description="Quantization levels.")
    dtype: tuple[Dtype, ...] | None = Field(None, min_length=1, description="Types of the weights, as the suite asks.")
    attention: tuple[Attention, ...] | None = Field(None, min_length=1, description="Attention implementations.")
    device: Names | None = Field(None, description="Kinds of device: cpu, cuda, mps.")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        for field in schema["properties"].values():
            lists = [kind for kind in field.get("anyOf", ()) if kind.get("type") == "array"]
            field |= {"anyOf": [*(kind["items"] for kind in lists), *lists]} if lists else {}
        return schema

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        lists = set(Where.model_fields) | {"prompt"}
        return {key: [item] if key in lists and isinstance(item, str) else item for key, item in value.items()}


class KnownFailure(Where):
    """A failure that is known, and why. It shows as xfailed; when it stops failing, as xpassed."""

    prompt: Names | None = Field(None, description="Names of prompts.")
    versions: dict[StrictStr, StrictStr] | None = Field(
        None, min_length=1, description='With these versions of libraries only, e.g. {transformers: "<5.23"}.'
    )
    reason: StrictStr = Field(min_length=1, description="Why it fails: a sentence for the reader of the report.")

    @field_validator("versions")
    @classmethod
    def _are_specifiers(cls, versions: dict[str, str] | None) -> dict[str, str] | None:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        for library, specifier in (versions or {}).items():
            try:
                SpecifierSet(specifier)
            except InvalidSpecifier:
                raise ValueError(f"{library}: '{specifier}' is no version specifier; write one like <5.23") from None
        return versions

    def __hash__(self) -> int:
        return hash((self.reason, self.prompt, tuple((self.versions or {}).items())))

    def applies(self, device: str) -> bool:
        """Whether it is to be expected on this kind of device, with the libraries that are installed."""
        if self.device and device not in self.device:
            return False
        return all(_is_installed(library, specifier) for library, specifier in (self.versions or {}).items())


def _is_installed(library: str, specifier: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    from packaging.specifiers import SpecifierSet

    try:
        return SpecifierSet(specifier).contains(version(library), prereleases=True)
    except PackageNotFoundError:
        return False


class Test(Frozen):
    """Prompts × generation × what must hold."""

    __test__ = False  # not a class for pytest to collect

    name: Name = Field(description="Unique in the suite; part of the node id.")
    description: StrictStr | None = Field(None, description="What it guards against.")
    prompts: Names = Field(description="Names of prompts of this suite.")
    generation: Name = Field("greedy", description="Name of a generation config of this suite.")
    expect: Expect = Field(description="What must hold.")
    only: Where | None = Field(None, description="Run it on these targets only; it is skipped elsewhere.")
    xfail: tuple[KnownFailure, ...] = Field((), description="Known failures, each with its reason.")
    marks: tuple[Name, ...] = Field((), description="pytest marks, for -m.")

    @field_validator("expect")
    @classmethod
    def _expects_something(cls, expect: Expect) -> Expect:
        if not expect.expectations():
            raise ValueError("nothing is expected; write at least one expectation")
        return expect


class Reading(Frozen):
    """A text to read: how likely it is to a target. Its paragraphs are read one by one."""

    text: StrictStr | None = Field(None, min_length=1, description="The text itself; an empty line parts paragraphs.")
    file: StrictStr | None = Field(None, description="A text file, relative to this one.")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return either({"type": "string"}, handler.resolve_ref_schema(handler(core_schema)))

    @model_validator(mode="before")
    @classmethod
    def _plain_text(cls, value: object) -> object:
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_of(self) -> Reading:
        if (self.text is None) == (self.file is None):
            raise ValueError("a text to read is either text or a file")
        return self


class Speed(Frozen):
    """How speed is measured: each size of batch, again and again, with every row going on to the same length."""

    repeats: StrictInt = Field(5, ge=2, le=1000, description="So many times, after one to warm up.")
    new_tokens: StrictInt = Field(24, ge=2, description="So many in each row, whatever the model would say.")
    batch_size: StrictInt | None = Field(
        None, ge=2, le=1024, description="Rows beside a single one. Unset: the suite's batch_size, or 8."
    )


class Compare(Frozen):
    """What `harness compare` looks at. Unset: every prompt of the suite under `greedy`."""

    prompts: Names | None = Field(None, description="Names of prompts; unset: all.")
    generation: Names = Field(
        ("greedy",), description="Generation configs, each on every target; the first belongs to the baseline."
    )
    texts: dict[Name, Reading] = Field(
        default_factory=dict, description="Texts whose perplexity is compared, by name: written here, or files."
    )
    speed: Speed = Field(Speed(), description="How speed is measured.")


class Budget(Frozen):
    """What a target may cost to be shipped."""

    max_kl: Number | None = Field(
        None, ge=0, description="Mean KL to the baseline, nats a token, on the baseline's own continuations."
    )
    min_top1: Number | None = Field(
        None, ge=0, le=1, description="Share of tokens that the baseline and the target hold for the likeliest."
    )
    max_perplexity_ratio: Number | None = Field(
        None, gt=0, description="Perplexity of the given texts over the baseline's."
    )
    min_speedup: Number | None = Field(
        None, gt=0, description="Tokens a second over the baseline's, at the suite's batch."
    )
    max_memory_mb: Number | None = Field(None, gt=0, description="Peak memory while generating at the suite's batch.")
    must_pass: Names | None = Field(None, description="Tests that must pass; a known failure is one, too.")

    @model_validator(mode="after")
    def _limits_something(self) -> Budget:
        if not self.model_fields_set:
            raise ValueError("a budget has at least one limit")
        return self


class Suite(Frozen):
    """One YAML file: models, quantization levels, prompts, generation configs, tests."""

    suite: Name = Field(description="Name of the suite.")
    description: StrictStr | None = Field(None, description="What it is for.")
    extends: StrictStr | None = Field(None, description="Another suite file to build on; what is written here wins.")
    models: dict[Name, Model] = Field(min_length=1, description="Models by name.")
    quantization: Annotated[tuple[Level, ...], Once] = Field(
        ("none",), min_length=1, description="Levels; each model runs at each."
    )
    dtype: Annotated[tuple[Dtype, ...] | None, Once] = Field(
        None, min_length=1, description="A further axis: types of the weights."
    )
    attention: Annotated[tuple[Attention, ...] | None, Once] = Field(
        None, min_length=1, description="A further axis: attention."
    )
    baseline: Where | None = Field(None, description="The target that the others are compared with.")
    batch_size: StrictInt | None = Field(
        None,
        ge=1,
        le=1024,
        description="Rows per batch. Unset: 16 in float32; 1 elsewhere, where shapes change tokens.",
    )
    top_k_logprobs: StrictInt = Field(20, ge=2, le=1000, description="Log-probabilities recorded per token.")
    generation: dict[Name, Generation] = Field(
        default_factory=dict, description="Generation configs by name; `greedy` is the default of tests."
    )
    prompts: dict[Name, Prompt] = Field(min_length=1, description="Prompts by name.")
    tests: tuple[Test, ...] = Field(min_length=1, description="What must hold.")
    compare: Compare = Field(Compare(), description="What `harness compare` looks at.")
    budget: Budget | None = Field(None, description="What a target may cost: `harness compare` says who keeps it.")

    def generation_named(self, name: str) -> Generation:
        return self.generation.get(name, GREEDY)
