"""Console of a long run, whose reader may go before the run has ended."""

from rich.console import Console

from mvczigal_ref.files import to_nothing

__all__ = ["PatientConsole"]


class PatientConsole(Console):
    """Console that falls silent when nobody reads it any more, where rich's ends the process.

    Examples:
        >>> PatientConsole().reader_gone
        False
    """

    reader_gone: bool = False
    """Whether a pipe has lost its reader, as after `| head`."""

    def on_broken_pipe(self) -> None:
        """Fall silent, and let what others still print there go nowhere."""
        self.quiet = self.reader_gone = True
        to_nothing(self.file.fileno())
