"""In the root of the package: the service's command line as its user, one mail for the GED and one for a collector."""

import os
import pwd
import re
import smtplib
import subprocess
import sys
import time
from email.message import EmailMessage
from pathlib import Path


def become() -> None:
    account = pwd.getpwnam("welyb-relay")
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


# Port 25 is systemd's to bind.
settings = Path("/etc/welyb-relay/relay.toml").read_text()
assert 'listen = ["0.0.0.0:25"]' in settings
Path("/tmp/relay.toml").write_text(settings.replace("0.0.0.0:25", "127.0.0.1:0"))
os.environ["WELYB_RELAY_CONFIG"] = "/tmp/relay.toml"
unit = Path("/lib/systemd/system/welyb-relay.service").read_text()
command = re.search(r"(?m)^ExecStart=(.*)$", unit)[1].split()
relay = subprocess.Popen(command, preexec_fn=become, stdout=subprocess.PIPE, text=True, cwd="/")
try:
    ready = relay.stdout.readline()
    host, _, port = ready.split()[1].rpartition(":")
    mail = EmailMessage()
    mail["Subject"], mail["Message-ID"] = "Facture", f"<{time.time_ns()}@cabinet.example>"
    mail.set_content("ci-joint")
    mail.add_attachment(b"%PDF-1.4 essai", maintype="application", subtype="pdf", filename="facture.pdf")
    with smtplib.SMTP(host, int(port)) as client:
        client.send_message(mail, "compta@cabinet.example", ["ventes+macon-dupont@welyb.fr", "meg+dupont@welyb.fr"])
    end = time.monotonic() + 60
    while (
        time.monotonic() < end
        and "filed" not in subprocess.run(["welyb-relay", "queue", "summary"], capture_output=True, text=True).stdout
    ):
        time.sleep(0.1)
finally:
    relay.terminate()
    code = relay.wait(60)
found = sorted(path.name for path in Path("/srv/ged").rglob("*.pdf"))
print(code, *found)
sys.exit(code)
