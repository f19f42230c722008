"""Models made of an encoder and a decoder with families of their own: BERT2BERT, TrOCR."""

from deltakit.arch.family import Family, register_family

register_family(
    Family(
        name="encoder-decoder",
        model_types=("encoder-decoder", "speech-encoder-decoder", "vision-encoder-decoder"),
        stacks=(),
        parts=("encoder", "decoder"),
    )
)
