"""Wall time by stage."""

from grpo_ray.stopwatch import Stopwatch


def test_pieces_that_overlap_are_counted_once() -> None:
    watch = Stopwatch()
    with watch.on("whole"):
        with watch.on("part"):
            with watch.on("part"):
                assert "part" not in watch.seconds
            assert "part" not in watch.seconds
        first = watch.seconds["part"]
        with watch.on("part"):
            pass
    assert 0 < first < watch.seconds["part"] < watch.seconds["whole"]


def test_a_piece_that_fails_is_counted_too() -> None:
    watch = Stopwatch()
    try:
        with watch.on("part"):
            raise KeyError("a fault")
    except KeyError:
        assert watch.seconds["part"] > 0
