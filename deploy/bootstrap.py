"""Every secret of docker-compose.yml: made at random when it is missing, and handed to the services that need it.

    docker compose up                                                    makes what is missing before all else
    docker compose run --rm bootstrap show label_studio_password         prints one
    docker compose run --rm -T bootstrap set label_studio_token <file    takes another value, from standard input

The volume ``secrets`` holds them all, and only this step sees it. Each reader has a volume of its own with no more than
what it needs; there every user may read, because the images run as different ones and nothing else mounts the volume.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path
from urllib.parse import quote

SECRETS = Path("/secrets")
READERS = Path("/readers")

MAKERS = {
    "postgres_password": lambda: secrets.token_urlsafe(24),
    "label_studio_database_password": lambda: secrets.token_urlsafe(24),
    "tandem_database_password": lambda: secrets.token_urlsafe(24),
    "label_studio_password": lambda: secrets.token_urlsafe(12),
    "label_studio_token": lambda: secrets.token_hex(20),
    "label_studio_key": lambda: secrets.token_urlsafe(48),
    "webhook_secret": lambda: secrets.token_urlsafe(24),
    "grafana_password": lambda: secrets.token_urlsafe(12),
    "storage_access_key": lambda: secrets.token_hex(10),
    "storage_secret_key": lambda: secrets.token_urlsafe(30),
}


def make_missing() -> None:
    """Give every secret a value that has none."""
    for name, make in MAKERS.items():
        if not (SECRETS / name).exists():
            write(SECRETS / name, make(), mode=0o600)


def hand_over() -> None:
    """Write what each service reads."""
    value = {name: (SECRETS / name).read_text() for name in MAKERS}
    database_password = quote(value["tandem_database_password"], safe="")
    files = {
        "database/postgres_password": value["postgres_password"],
        "database/label_studio_database_password": value["label_studio_database_password"],
        "database/tandem_database_password": value["tandem_database_password"],
        "label-studio/label-studio.env": label_studio_environment(value),
        "tandem/database_url": f"postgresql://tandem:{database_password}@database:5432/tandem",
        "tandem/label_studio_api_key": value["label_studio_token"],
        "tandem/webhook_secret": value["webhook_secret"],
        "monitoring/grafana_password": value["grafana_password"],
        "storage/s3.json": storage_identities(value),
        "tandem/aws_credentials": (
            f"[default]\naws_access_key_id = {value['storage_access_key']}\n"
            f"aws_secret_access_key = {value['storage_secret_key']}\n"
        ),
    }
    for name, content in files.items():
        write(READERS / name, content, mode=0o444)


def label_studio_environment(value: dict[str, str]) -> str:
    """Return what the entry point of Label Studio's image reads as a shell script."""
    variables = {
        "LABEL_STUDIO_USERNAME": os.environ["LABEL_STUDIO_USERNAME"],  # noqa: TID251 - not a part of Tandem
        "LABEL_STUDIO_PASSWORD": value["label_studio_password"],
        "LABEL_STUDIO_USER_TOKEN": value["label_studio_token"],
        "POSTGRE_PASSWORD": value["label_studio_database_password"],
        "SECRET_KEY": value["label_studio_key"],
    }
    if any(set(content) & set("'\n") for content in variables.values()):
        sys.exit("LABEL_STUDIO_USERNAME must be an e-mail address without quotation marks")
    return "".join(f"export {name}='{content}'\n" for name, content in variables.items())


def storage_identities(value: dict[str, str]) -> str:
    """Return the one user that the server of the profile ``storage`` knows."""
    credentials = [{"accessKey": value["storage_access_key"], "secretKey": value["storage_secret_key"]}]
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    return json.dumps({"identities": [{"name": "tandem", "credentials": credentials, "actions": actions}]})


def write(path: Path, content: str, *, mode: int) -> None:
    """Write a file that appears whole; one that holds the same already stays as it is."""
    if path.exists() and path.read_text() == content:
        return
    new = path.with_name(f".{path.name}")
    new.touch(mode=0o600)
    new.write_text(content)
    new.chmod(mode)
    new.replace(path)


def main(arguments: list[str]) -> None:
    """Make, show or set."""
    match arguments:
        case []:
            pass
        case ["show", name] if name in MAKERS:
            print((SECRETS / name).read_text())  # noqa: T201 - what was asked for
            return
        case ["set", name] if name in MAKERS:
            content = sys.stdin.read().strip()
            if not content:
                sys.exit(f"standard input is empty: {name} stays as it is")
            write(SECRETS / name, content, mode=0o600)
        case _:
            sys.exit(f"usage: bootstrap [show NAME | set NAME], NAME one of: {', '.join(MAKERS)}")
    make_missing()
    hand_over()


if __name__ == "__main__":
    main(sys.argv[1:])
