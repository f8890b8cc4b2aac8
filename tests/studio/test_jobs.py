"""Work in a thread: its news, its end, its stop."""

import threading
import time

import pytest

from controlnet.errors import UserError
from controlnet.studio.jobs import Job, Jobs, Stopped


def test_news_come_in_order_and_then_the_result():
    def work(job):
        for number in range(1, 50):
            job.tell(number)
        return "done"

    job = Job(work, seconds=60)
    heard = [news for news in job.run() if news is not None]
    assert heard == sorted(heard)
    assert heard[-1] == 49
    assert job.result() == "done"


def test_what_the_work_raises_is_raised_by_the_result():
    def work(job):
        raise UserError("no")

    job = Job(work, seconds=60)
    assert list(job.run()) == [None]
    with pytest.raises(UserError, match="no"):
        job.result()


def test_a_stop_ends_the_work_at_its_next_word():
    words = []

    def work(job):
        while True:
            job.tell(len(words))
            words.append(None)

    job = Job(work, seconds=60)
    for _ in job.run():
        job.stop()
    with pytest.raises(Stopped):
        job.result()


def test_who_stops_to_listen_stops_the_work():
    ended = threading.Event()

    def work(job):
        try:
            while True:
                job.tell(1)
                time.sleep(0.001)
        finally:
            ended.set()

    news = Job(work, seconds=60).run()
    next(news)
    news.close()
    assert ended.wait(10)


def test_a_job_has_its_time():
    def work(job):
        while True:
            job.tell(1)

    job = Job(work, seconds=0)
    list(job.run())
    with pytest.raises(UserError, match="stopped after 0 s"):
        job.result()


def test_stopping_where_nothing_runs_is_no_error():
    jobs = Jobs()
    assert not jobs.stop("nobody")
    job = jobs.begin("somebody", Job(lambda job: None, seconds=1))
    assert jobs.stop("somebody")
    jobs.end("somebody")
    assert not jobs.stop("somebody")
    list(job.run())
