r"""Language models that run in this process, with the interface of served ones.

A token is drawn as the largest of logits plus Gumbel noise, which is distributed as the softmax,

.. math:: \arg\max_i \big(\ell_i - \log(-\log u_i)\big), \qquad u_i \sim U(0, 1)

so an answer depends on model, question and seed alone, and no generator of torch's is touched.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen3VLForConditionalGeneration,
)

from mvczigal_ref.errors import CheckpointError, one_line
from mvczigal_ref.language.chat import ChatAnswerError
from mvczigal_ref.language.protocol import Question
from mvczigal_ref.models.loading import quiet

__all__ = ["LocalLanguageModel", "LocalVisionLanguageModel"]

# Nothing is fetched, no code besides the library's own is run, and no pickle is opened.
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


class LocalLanguageModel:
    """A causal language model of transformers, such as Qwen3.

    Args:
        model: Causal language model of transformers; used in evaluation mode.
        tokenizer: Tokenizer with a chat template.
        max_new_tokens: Longest answer [1]; one that is cut is an error, as with a served model.
        temperature: Temperature of the sampling [1]; 0 takes the likeliest token.
        top_p: Tokens are drawn from the likeliest ones that together have this probability
            [1], in (0, 1].
        seed: Seed of questions without a seed of their own.
        thinking: Whether a model that can write its thoughts does; they count as tokens.

    Raises:
        ValueError: If a setting is out of range, or the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - untyped library
        tokenizer: Any,  # noqa: ANN401
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.7,
        top_p: float = 0.8,
        seed: int = 0,
        thinking: bool = False,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be at least 1; got {max_new_tokens}.")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"`temperature` must be finite, at least 0; got {temperature}.")
        if not 0 < top_p <= 1:
            raise ValueError(f"`top_p` must lie in (0, 1]; got {top_p}.")
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("`tokenizer` must have a chat template; take an instruction model.")
        self._model, self._tokenizer = model.eval(), tokenizer
        self._temperature, self._top_p, self._seed = temperature, top_p, seed
        self._thinking = thinking
        ends = model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self._ends: list[int] = [ends] if isinstance(ends, int) else list(ends)
        pad = tokenizer.pad_token_id
        self._config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=self._ends,
            pad_token_id=self._ends[0] if pad is None else pad,
        )
        # The sampling settings of the folder would contradict ours, and be logged.
        model.generation_config = self._config

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        **settings: Any,  # noqa: ANN401
    ) -> "LocalLanguageModel":
        """Load a model from a folder or the hub's cache; nothing is fetched.

        Args:
            source: Folder, or hub id of a model that was fetched before.
            device: Device that the model runs on.
            dtype: Floating type of the model.
            **settings: Keywords of the constructor.

        Returns:
            The model, ready to be asked.

        Raises:
            CheckpointError: If it is not there, is another kind of model, or lacks tensors.
        """
        return cls(*cls._loaded(AutoModelForCausalLM, source, device, dtype), **settings)

    @staticmethod
    def _loaded(
        kind: Any,  # noqa: ANN401
        source: str | Path,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> tuple[Any, Any]:
        """Load the model and its tokenizer."""
        options = {**_LOCAL, "dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        try:
            with quiet():
                model, info = kind.from_pretrained(str(source), **options)
                tokenizer = AutoTokenizer.from_pretrained(str(source), **_LOCAL)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = one_line(error)
            raise CheckpointError(f"cannot load a model from {str(source)!r}: {reason}") from error
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"]))
            raise CheckpointError(f"{str(source)!r} must hold all tensors; missing: {missing}.")
        return model.to(device), tokenizer

    def ask(
        self,
        text: str,
        images: Sequence[Float[Tensor, "rgb height width"]] = (),
        *,
        seed: int | None = None,
    ) -> str:
        """Answer one question.

        Args:
            text: Text that the model reads, without the tokenizer's own markup.
            images: Empty, as this model reads text alone.
            seed: Seed of the answer's sampling; the model's own when None.

        Returns:
            The answer, without special tokens.

        Raises:
            ChatAnswerError: If the answer was cut at ``max_new_tokens``.
            ValueError: If there are images, or ``text`` holds markup.
        """
        answer = self.ask_all([Question(text=text, images=images, seed=seed)])[0]
        if isinstance(answer, ChatAnswerError):
            raise answer
        return answer

    def ask_all(self, questions: Sequence[Question]) -> list[str | ChatAnswerError]:
        """Answer several questions in one call of the network.

        Questions are padded on their left. Each answer is that of its question asked alone, but for
        the rounding of the network, which differs in a larger batch.

        Args:
            questions: The questions.

        Returns:
            One answer per question, or an error where it was cut at ``max_new_tokens`` and its
            question's further ones.

        Raises:
            ValueError: As :meth:`ask`.
        """
        read = [self._read(question) for question in questions]
        seeds = [self._seed if q.seed is None else q.seed for q in questions]
        lengths = [self._config.max_new_tokens + q.more_tokens for q in questions]
        names = {name: None for _, inputs in read for name in inputs}
        inputs = {n: torch.cat([each[n] for _, each in read if n in each]) for n in names}
        return self._answers([ids for ids, _ in read], inputs, seeds, lengths)

    def _read(self, question: Question) -> tuple[list[int], dict[str, Tensor]]:
        """Turn a question into token ids, and its images into what the network reads."""
        if question.images:
            msg = "`images` must be empty, as this model reads text alone; load a vision model."
            raise ValueError(msg)
        return self._ids(question.text, 0), {}

    def _marks(self, ids: Tensor) -> dict[str, Tensor]:
        """Give what a network reads beside padded token ids."""
        del ids
        return {}

    def _ids(self, text: str, num_images: int) -> list[int]:
        """Write the question in the model's chat template, and turn it into token ids."""
        for token in self._tokenizer.get_added_vocab():
            if token in text:
                msg = f"`text` must not hold the tokenizer's markup; got {token!r}. Take it out."
                raise ValueError(msg)
        parts: list[dict[str, str]] = [{"type": "image"}] * num_images
        content = [*parts, {"type": "text", "text": text}] if parts else text
        written = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self._thinking,
        )
        ids: list[int] = self._tokenizer(written, add_special_tokens=False).input_ids
        return ids

    @torch.no_grad()
    def _answers(
        self,
        rows: Sequence[list[int]],
        inputs: dict[str, Tensor],
        seeds: Sequence[int],
        lengths: Sequence[int],
    ) -> list[str | ChatAnswerError]:
        """Generate until every row has an end token, or is cut."""
        device, longest = self._model.device, max(map(len, rows))
        pad = self._config.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        processors = LogitsProcessorList()
        if self._temperature > 0:
            generators = [_generator(seed, row) for seed, row in zip(seeds, rows, strict=True)]
            processors.append(_GumbelNoise(self._temperature, self._top_p, generators))
        output = self._model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=self._config,
            max_new_tokens=max(lengths),
            logits_processor=processors,
            **{n: value.to(device) for n, value in {**inputs, **self._marks(ids)}.items()},
        )
        new = zip(output[:, longest:].tolist(), lengths, strict=True)
        return [self._whole(row[:length]) for row, length in new]

    def _whole(self, new: list[int]) -> str | ChatAnswerError:
        """Cut an answer at its end token; one without is refused."""
        end = next((index for index, token in enumerate(new) if token in self._ends), None)
        if end is None:
            msg = "The answer must be whole; got one that was cut. Raise `max_new_tokens`."
            return ChatAnswerError(msg)
        answer: str = self._tokenizer.decode(new[:end], skip_special_tokens=True)
        return answer


class LocalVisionLanguageModel(LocalLanguageModel):
    """Qwen3-VL of transformers.

    Images are prepared by the library's processor for Pillow, so torchvision is not needed.

    Args:
        model: Qwen3-VL.
        tokenizer: Tokenizer with the model's chat template.
        image_processor: The model's image processor.
        **settings: Keywords of :class:`LocalLanguageModel`.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        tokenizer: Any,  # noqa: ANN401
        image_processor: Any,  # noqa: ANN401
        **settings: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(model, tokenizer, **settings)
        self._image_processor = image_processor

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        **settings: Any,  # noqa: ANN401
    ) -> "LocalVisionLanguageModel":
        """Load Qwen3-VL; see :meth:`LocalLanguageModel.load`."""
        model, tokenizer = cls._loaded(Qwen3VLForConditionalGeneration, source, device, dtype)
        try:
            processor = AutoImageProcessor.from_pretrained(str(source), backend="pil", **_LOCAL)
        except (OSError, ValueError) as error:
            msg = f"cannot load an image processor from {str(source)!r}: {error}"
            raise CheckpointError(msg) from error
        return cls(model, tokenizer, processor, **settings)

    def _read(self, question: Question) -> tuple[list[int], dict[str, Tensor]]:
        """Turn a question into token ids, and its images into what the network reads."""
        ids = self._ids(question.text, len(question.images))
        if not question.images:
            return ids, {}
        pixels = [(i.detach().cpu().float().clamp(0, 1) * 255).round() for i in question.images]
        seen = self._image_processor(
            images=[image.to(torch.uint8).numpy() for image in pixels],
            input_data_format="channels_first",
            return_tensors="pt",
        )
        grid = seen["image_grid_thw"]
        # The template writes one token per image; the model needs one per patch after merging.
        token = self._model.config.image_token_id
        counts = iter((grid.prod(-1) // self._image_processor.merge_size**2).tolist())
        ids = [i for one in ids for i in [one] * (next(counts) if one == token else 1)]
        pixel_values = seen["pixel_values"].to(self._model.dtype)
        return ids, {"pixel_values": pixel_values, "image_grid_thw": grid}

    def _marks(self, ids: Tensor) -> dict[str, Tensor]:
        """Give what a network reads beside padded token ids."""
        marks = (ids == self._model.config.image_token_id).int()
        return {"mm_token_type_ids": marks} if bool(marks.any()) else {}


def _generator(seed: int, ids: list[int]) -> torch.Generator:
    """Make the generator of one answer, from its question and seed alone."""
    digest = hashlib.blake2b(repr((seed, [ids])).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class _GumbelNoise(LogitsProcessor):
    """Turn the choice of the likeliest token into a draw from the tokens' distribution."""

    def __init__(
        self, temperature: float, top_p: float, generators: Sequence[torch.Generator]
    ) -> None:
        self._temperature, self._top_p, self._generators = temperature, top_p, generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Narrow the logits to the likeliest tokens and add noise."""
        del input_ids
        logits = scores.double() / self._temperature
        ordered, index = logits.sort(dim=-1, descending=True)
        share = ordered.softmax(-1)
        # The likeliest token stays whatever `top_p` is, since no probability comes before it.
        beyond = share.cumsum(-1) - share >= self._top_p
        logits = logits.scatter(-1, index, ordered.masked_fill(beyond, -math.inf))
        shape = (len(logits) // len(self._generators), logits.shape[-1])
        noise = [torch.rand(shape, generator=g, dtype=torch.float64) for g in self._generators]
        u = torch.cat(noise)
        return logits - (-u.clamp_min(2.0**-60).log()).log().to(logits.device)
