"""Handwritten digits of 8 by 8 pixels, from scikit-learn: Alpaydin and Kaynak (1998)."""

import io
from typing import Any, ClassVar

from deltakit.compare.tasks.data.pictures import COLUMN, check_pillow
from deltakit.compare.tasks.data.splits import Examples, carve
from deltakit.compare.tasks.kinds.images import Images
from deltakit.compare.tasks.task import Task, TaskData, register_task


@register_task("digits")
class Digits(Task):
    """1,797 pictures; 360 are test and 180 validation."""

    description: ClassVar[str] = "handwritten digits, 10 classes of pictures"
    version: ClassVar[int] = 1
    citation: ClassVar[str] = """@misc{alpaydin1998optical,
  title = {Optical Recognition of Handwritten Digits},
  author = {Alpaydin, Ethem and Kaynak, Cenk},
  howpublished = {UCI Machine Learning Repository},
  year = {1998}
}"""

    def load(self) -> TaskData:
        check_pillow()
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        images = [png(each.reshape(8, 8)) for each in pixels]
        examples = Examples(inputs={COLUMN: images}, labels=[int(digit) for digit in digits])
        classes = tuple(map(str, range(10)))
        return self._task_data(carve(examples, test=360, validation=180), Images(classes=classes))


def png(grey: Any) -> bytes:
    """The bytes of a PNG file of grey levels from 0 to 16, shape (height, width)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((grey * 255 / 16).round().astype("uint8")).save(buffer, format="PNG")
    return buffer.getvalue()
