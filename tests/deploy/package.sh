#!/bin/sh
# package.sh DEB NEWER ROOT FOLDER: the life of the package in a root of its own, over this machine's: installed, serving as
# its user, upgraded with a migration, removed, purged. Says what it sees, a fact a line. Run under `unshare -m`.
set -eu
deb=$1 newer=$2 root=$3 folder=$4
mkdir -p "$folder/upper" "$folder/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
cp "$deb" "$root/tmp/one.deb"
cp "$newer" "$root/tmp/two.deb"
cp "$folder/story.py" "$root/tmp/story.py"
in_root() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
say() { echo "$1: $(in_root sh -c "$2" 2>&1 | tr '\n' ' ')"; }

mkdir -p "$root/srv/ged/macon-dupont"
in_root dpkg -i /tmp/one.deb > "$folder/dpkg.log" 2>&1
say version "welyb-relay --version"
say user "getent passwd welyb-relay | cut -d: -f6,7"
say modes "stat -c '%a %U %G %n' /etc/welyb-relay/relay.toml /var/lib/welyb-relay"
in_root chown -R welyb-relay /srv/ged
say check "welyb-relay check --json | grep -c '\"ok\": true' >/dev/null && echo answered"
say story "python3 /tmp/story.py 2>/dev/null"
say data "stat -c '%a %U' /var/lib/welyb-relay/relay.db"
say built "grep -rl $folder /usr/lib/welyb-relay /etc/welyb-relay | head -3"
say manual "zcat /usr/share/man/fr/man1/welyb-relay-queue-hold.1.gz | grep -c Retient"
say completion "grep -c _welyb_relay /usr/share/bash-completion/completions/welyb-relay >/dev/null && echo there"

mv "$root/etc/welyb-relay/relay.toml" "$folder/relay.toml" # an upgrade must not mind
in_root dpkg -i /tmp/two.deb >> "$folder/dpkg.log" 2>&1
say upgraded "dpkg-query -W -f '\${Version} \${Status}' welyb-relay"
cp "$folder/relay.toml" "$root/etc/welyb-relay/relay.toml"
say story "python3 /tmp/story.py 2>/dev/null"
say schema "/usr/lib/welyb-relay/bin/python -c \"
import pysqlite3; db = pysqlite3.connect('/var/lib/welyb-relay/relay.db')
print(*db.execute('PRAGMA user_version').fetchone(), *db.execute('SELECT count(*) FROM message').fetchone())\""

in_root dpkg -r welyb-relay >> "$folder/dpkg.log" 2>&1
say removed "ls /usr/bin/welyb-relay /etc/welyb-relay/relay.toml /var/lib/welyb-relay/relay.db"
in_root dpkg -P welyb-relay >> "$folder/dpkg.log" 2>&1
say purged "ls -d /usr/lib/welyb-relay /etc/welyb-relay /var/lib/welyb-relay/relay.db"
