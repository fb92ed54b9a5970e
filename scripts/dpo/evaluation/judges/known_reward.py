"""The true reward of the embedded data, by which its pairs were labelled."""

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_VADER = SentimentIntensityAnalyzer()


def vader_score(text: str) -> float:
    """Sentiment of a text, from -1 to 1: the compound score of VADER (Hutto and Gilbert 2014)."""
    return _VADER.polarity_scores(text)["compound"]
