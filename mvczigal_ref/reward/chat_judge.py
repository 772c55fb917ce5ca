"""A served vision-language model as a judge of single views, or of all views together."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mvczigal_ref.language.chat import ChatAnswerError, ChatEndpoint, ChatRefusedError
from mvczigal_ref.language.threads import in_order
from mvczigal_ref.reward.judge_question import JOINT_CRITERIA, PER_VIEW_CRITERIA, code_for, question
from mvczigal_ref.reward.judgement import JudgementError, parse_scores
from mvczigal_ref.shapes import Images, JointViewReward, PerViewReward

__all__ = ["ChatJointJudge", "ChatJudge"]

_REMINDER = "\n\nThis was asked before and the answer lacked these lines. Write only them now."


class _Judge:
    """Common part of both judges: asking, asking again, several questions at a time."""

    usual: ClassVar[Mapping[str, str]]

    def __init__(
        self,
        endpoint: ChatEndpoint,
        *,
        criteria: Mapping[str, str] | None = None,
        re_asks: int = 2,
        workers: int = 8,
        always_code: bool = False,
    ) -> None:
        criteria = self.usual if criteria is None else criteria
        if not criteria or not all(re.fullmatch(r"[A-Za-z][A-Za-z -]*", n) for n in criteria):
            msg = f"`criteria` must have names of letters, at least one; got {list(criteria)}."
            raise ValueError(msg)
        for name, value, least in (("re_asks", re_asks, 0), ("workers", workers, 1)):
            if value < least:
                msg = f"`{name}` must be at least {least}; got {value}."
                raise ValueError(msg)
        self.endpoint, self.criteria = endpoint, dict(criteria)
        self.re_asks, self.workers, self.always_code = re_asks, workers, always_code

    def _all(
        self, rows: Sequence[Tensor], prompts: Sequence[str], views: int | None, per_object: int
    ) -> Tensor:
        """Score rows of one or more images each, in order; so many rows belong to an object."""
        # After a failure, no further question is asked.
        questions = zip(range(len(rows)), rows, prompts, strict=True)
        scores = in_order(self._one(views, per_object), questions, workers=self.workers)
        return torch.tensor(list(scores), dtype=torch.float32)

    def _one(
        self, views: int | None, per_object: int
    ) -> Callable[[tuple[int, Tensor, str]], float]:
        def score(asked: tuple[int, Tensor, str]) -> float:
            row, images, prompt = asked
            code = code_for(prompt, always=self.always_code)
            text = question(prompt, self.criteria, views=views, code=code)
            failure: ChatAnswerError | JudgementError | None = None
            for attempt in range(self.re_asks + 1):
                # A server that takes no seed gets none for a repeated question either.
                base = self.endpoint.seed
                seed = base + attempt if attempt and base is not None else None
                try:
                    answer = self.endpoint.ask(text, list(images), seed=seed)
                    scores = parse_scores(answer, list(self.criteria), code=code)
                    return math.fsum(scores.values()) / len(scores)
                except ChatRefusedError as error:  # no other wording would be taken
                    raise ChatRefusedError(f"{_place(row, per_object)}: {error}") from error
                except (ChatAnswerError, JudgementError) as error:
                    failure = error
                # At temperature 0 the same question would get the same answer.
                text = question(prompt, self.criteria, views=views, code=code) + _REMINDER
            msg = (
                f"{_place(row, per_object)} must be judged within {self.re_asks + 1} questions; "
                f"got: {failure}"
            )
            raise JudgementError(msg) from failure

        return score


class ChatJudge(_Judge):
    r"""`chat_judge`: a served model's opinion of every view on its own [points, 1 to 5].

    .. math:: R_{b v} = \frac{1}{K} \sum_k s_k(x_{b v}, c_b)

    Images of today's generators get about 3 to 4 from UnifiedReward 2.0. For the score of one
    criterion, give ``criteria`` with that one alone.

    Source:
        Wang et al., UnifiedReward, arXiv:2503.05236, pointwise scoring. Deviation: the question
        has other words, and a prompt that speaks of scores cannot be taken for a judgement.

    Args:
        endpoint: Server of the judge, such as vLLM with
            ``CodeGoat24/UnifiedReward-2.0-qwen-7b``; at temperature 0, scores repeat as far as
            the server's answers do.
        criteria: Questions of the judgement, by name.
        re_asks: Further questions where an answer holds no scores [1].
        workers: Questions asked at once [1]; positive.
        always_code: Ask for the code in every answer; it also protects against text that a
            generator paints into its images.

    Examples:
        >>> judge = ChatJudge(ChatEndpoint("http://127.0.0.1:8000/v1", "UnifiedReward"))
        >>> list(judge.criteria)
        ['Alignment', 'Coherence', 'Style']
    """

    usual = PER_VIEW_CRITERIA

    def __call__(self, images: Images, prompts: Sequence[str]) -> PerViewReward:
        """Ask for every view.

        Args:
            images: Decoded views in [0, 1].
            prompts: One prompt per object.

        Returns:
            The mean score of each view [points, 1 to 5], on the images' device.

        Raises:
            ValueError: If there is not one prompt per object.
            JudgementError: If a view gets no scores.
            ChatUnavailableError: If the endpoint does not answer.
        """
        _check(images, prompts)
        views = images.shape[1]
        rows = list(images.flatten(0, 1)[:, None])
        repeated = [prompt for prompt in prompts for _ in range(views)]
        return self._all(rows, repeated, None, views).view(images.shape[:2]).to(images.device)


class ChatJointJudge(_Judge):
    r"""`chat_judge.joint`: a served model's opinion of all views together [points, 1 to 5].

    .. math:: R_b = \frac{1}{K} \sum_k s_k(x_{b 1}, \dots, x_{b V}, c_b)

    The model must take several images per message. There is no published number for this score.

    Args:
        endpoint: Server of the judge.
        num_views: Views of an object [1]; another number is refused.
        criteria: Questions of the judgement, by name.
        re_asks: Further questions where an answer holds no scores [1].
        workers: Questions asked at once [1]; positive.
        always_code: Ask for the code in every answer.
    """

    usual = JOINT_CRITERIA

    def __init__(
        self,
        endpoint: ChatEndpoint,
        *,
        num_views: int,
        criteria: Mapping[str, str] | None = None,
        re_asks: int = 2,
        workers: int = 8,
        always_code: bool = False,
    ) -> None:
        super().__init__(
            endpoint, criteria=criteria, re_asks=re_asks, workers=workers, always_code=always_code
        )
        self.num_views = num_views

    def __call__(self, images: Images, prompts: Sequence[str]) -> JointViewReward:
        """Ask for every object.

        Args:
            images: Decoded views in [0, 1].
            prompts: One prompt per object.

        Returns:
            The mean score of each object [points, 1 to 5], on the images' device.

        Raises:
            ValueError: If there is not one prompt per object, or another number of views.
            JudgementError: If an object gets no scores.
            ChatUnavailableError: If the endpoint does not answer.
        """
        _check(images, prompts)
        if images.shape[1] != self.num_views:
            msg = f"`images` must have {self.num_views} views; got {images.shape[1]}."
            raise ValueError(msg)
        return self._all(list(images), list(prompts), self.num_views, 1).to(images.device)


def _place(row: int, per_object: int) -> str:
    """Name what a row shows, as counted in this call."""
    object, view = divmod(row, per_object)
    return f"Object {object}" + (f", view {view}" if per_object > 1 else "")


def _check(images: Images, prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or len(prompts) != len(images):
        msg = f"`prompts` must be one text per object, {len(images)}; got {prompts!r}. Give a list."
        raise ValueError(msg)
