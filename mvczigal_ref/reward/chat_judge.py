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
from mvczigal_ref.reward.several_images import parse_score_lists, question_of_several
from mvczigal_ref.shapes import Images, JointViewReward, PerViewReward

__all__ = ["ChatJointJudge", "ChatJudge"]

_REMINDER = "\n\nThis was asked before and the answer lacked these lines. Write only them now."
_FEWER = " Servers limit the images of a message: lower `images_per_question` if that is why."
_MORE_TOKENS = 64  # of an answer, for each further image, or object, that it is about


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
        images_per_question: int = 1,
    ) -> None:
        criteria = self.usual if criteria is None else criteria
        if not criteria or not all(re.fullmatch(r"[A-Za-z][A-Za-z -]*", n) for n in criteria):
            msg = f"`criteria` must have names of letters, at least one; got {list(criteria)}."
            raise ValueError(msg)
        for name, value, least in (
            ("re_asks", re_asks, 0),
            ("workers", workers, 1),
            ("images_per_question", images_per_question, 1),
        ):
            if value < least:
                msg = f"`{name}` must be at least {least}; got {value}."
                raise ValueError(msg)
        self.endpoint, self.criteria = endpoint, dict(criteria)
        self.re_asks, self.workers, self.always_code = re_asks, workers, always_code
        self.images_per_question = images_per_question

    def _all(
        self, rows: Sequence[Tensor], prompts: Sequence[str], views: int | None, per_object: int
    ) -> Tensor:
        """Score rows of one or more images each, in order; so many rows belong to an object."""
        size = max(1, self.images_per_question // (views or 1))
        questions = (
            (first, rows[first : first + size], prompts[first : first + size])
            for first in range(0, len(rows), size)
        )
        # After a failure, no further question is asked.
        scores = in_order(self._one(views, per_object), questions, workers=self.workers)
        return torch.tensor([score for part in scores for score in part], dtype=torch.float32)

    def _one(
        self, views: int | None, per_object: int
    ) -> Callable[[tuple[int, Sequence[Tensor], Sequence[str]]], list[float]]:
        def scores(asked: tuple[int, Sequence[Tensor], Sequence[str]]) -> list[float]:
            first, rows, prompts = asked
            place = _place(first, len(rows), per_object)
            images = [image for row in rows for image in row]
            # No prompt can contain a hash of the text that it is part of.
            code = code_for("\n".join(prompts), always=self.always_code)
            plain = self._question(prompts, views, code)
            endpoint = self.endpoint.longer(_MORE_TOKENS * (len(rows) - 1))
            failure: ChatAnswerError | JudgementError | None = None
            for attempt in range(self.re_asks + 1):
                # A server that takes no seed gets none for a repeated question either.
                base = self.endpoint.seed
                seed = base + attempt if attempt and base is not None else None
                # At temperature 0 the same question would get the same answer.
                text = plain + (_REMINDER if attempt else "")
                try:
                    return self._read(endpoint.ask(text, images, seed=seed), prompts, views, code)
                except ChatRefusedError as error:  # no other wording would be taken
                    hint = _FEWER if len(rows) > 1 else ""
                    raise ChatRefusedError(f"{place}: {error}{hint}") from error
                except (ChatAnswerError, JudgementError) as error:
                    failure = error
            msg = f"{place} must be judged within {self.re_asks + 1} questions; got: {failure}"
            raise JudgementError(msg) from failure

        return scores

    def _question(self, prompts: Sequence[str], views: int | None, code: str) -> str:
        if len(prompts) == 1:
            return question(prompts[0], self.criteria, views=views, code=code)
        return question_of_several(prompts, self.criteria, views=views, code=code)

    def _read(
        self, answer: str, prompts: Sequence[str], views: int | None, code: str
    ) -> list[float]:
        """Take the mean score of each row out of an answer."""
        names, count = list(self.criteria), len(prompts)
        if count == 1:
            each = [parse_scores(answer, names, code=code)]
        else:
            unit = "image" if views is None else "object"
            each = parse_score_lists(answer, names, count, code=code, unit=unit)
        return [math.fsum(scores.values()) / len(scores) for scores in each]


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
        images_per_question: Most images of a message [1], each under its own prompt and with
            scores of its own. Images that are shown together may change each other's scores.

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
        images_per_question: Most images of a message [1], in whole objects, but at least one
            object. Objects that are shown together may change each other's scores.
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
        images_per_question: int = 1,
    ) -> None:
        super().__init__(
            endpoint,
            criteria=criteria,
            re_asks=re_asks,
            workers=workers,
            always_code=always_code,
            images_per_question=images_per_question,
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


def _place(first: int, count: int, per_object: int) -> str:
    """Name what rows show, as counted in this call."""

    def name(row: int) -> str:
        object, view = divmod(row, per_object)
        return f"object {object}" + (f", view {view}" if per_object > 1 else "")

    last = f" to {name(first + count - 1)}" if count > 1 else ""
    return name(first).capitalize() + last


def _check(images: Images, prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or len(prompts) != len(images):
        msg = f"`prompts` must be one text per object, {len(images)}; got {prompts!r}. Give a list."
        raise ValueError(msg)
