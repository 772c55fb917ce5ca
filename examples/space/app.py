"""Page of `mvczigal play` as a Space of the Hugging Face hub."""

from mvczigal_ref.cli.playing import Play, page_of

demo = page_of(Play())

if __name__ == "__main__":
    demo.launch()
