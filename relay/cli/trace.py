"""`trace` and `documents`: "where is this invoice?"."""

import json
from collections.abc import Iterator
from typing import Any

import click

from relay.cli.language import t
from relay.cli.options import filters, json_option, reading, settings
from relay.cli.output import Record, emit, paged, printable, reason
from relay.config import Config
from rules import authentication


@click.command(
    help=t(
        "Toute l'histoire de QUERY : identifiant, nom de fichier, SHA-256, Message-ID, expéditeur ou client.",
        "The whole story of QUERY: id, file name, SHA-256, Message-ID, sender or client.",
    )
)
@click.argument("query")
@json_option
@click.pass_context
def trace(ctx: click.Context, query: str, as_json: bool) -> None:
    from relay.store import listing

    with reading(settings(ctx)) as db:
        story = listing.trace(db, query)
    if as_json:
        emit(story, (), as_json=True)
        return
    emit((line for row in story for line in lines(row)), ("at", "actor", "event", "what", "detail"), as_json=False)


def lines(row: Record) -> Iterator[Record]:
    """An event, and below it who the mail proved to be from."""
    detail = dict(row["detail"])
    known = detail.pop("authentication", None)
    yield {**row, "what": row["delivery"] or row["document"] or row["message"], "detail": _detail(detail)}
    if known:
        yield {"detail": authentication.told(authentication.of_facts(known))}


def _detail(detail: Record) -> str:
    return "; ".join(f"{key}={_short(value)}" for key, value in detail.items() if value not in ("", None, [], {}))


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


COLUMNS = ("id", "name", "status", "client", "folder", "collector", "size", "deposited_at", "validated_at", "reason")


@click.group(help=t("Les documents, comme le cabinet les voit.", "The documents, as the firm sees them."))
def documents() -> None:
    pass


@documents.command("list", help=t("Une ligne par document et destination.", "One row per document and destination."))
@json_option
@filters
@click.pass_context
def documents_list(ctx: click.Context, wanted: Any, as_json: bool) -> None:
    from relay.store import listing

    config = settings(ctx)
    with reading(config) as db:
        rows = _shown(listing.documents(db, wanted), config)
        emit(paged(rows, key="key", limit=wanted.limit, as_json=as_json), COLUMNS, as_json=as_json)


def _shown(rows: Iterator[dict[str, Any]], config: Config) -> Iterator[Record]:
    from relay.store import listing

    for row in rows:
        status = listing.status(row)
        sentence, code = reason(row["reason"], config.zone)
        sent = row["kind"] == "send"
        yield {
            "id": row["id"],
            "delivery": row["delivery"],
            "name": row["name"],
            "type": row["type"],
            "size": row["size"],
            "sha256": row["sha256"],
            "client": row["client"],
            "folder": row["folder"] if sent or status == "baseline" else row["path"].rpartition("/")[0],
            "collector": row["collector"] if sent or status == "baseline" else "",
            "origin": row["origin"],
            "status": status,
            "reason": sentence,
            "deposited_at": row["deposited_at"],
            "validated_at": row["finished_at"] if status == "validated" else None,
            "reason_code": code,
            "flags": [flag for flag in printable(row["flags"]).split(",") if flag],
            "uncertain": bool(row["uncertain"]),
            "key": row["key"],
        }
