#!/bin/sh
# package.sh DEB NEWER POSTFIX ROOT FOLDER: the life of the package in a root of its own, over this machine's: installed,
# serving as its user, alone and behind Postfix (POSTFIX is its package, unpacked) in both modes, upgraded with a migration,
# removed, purged. Says what it sees, a fact a line. Mounts, processes and network are its own, and end with it.
set -eu
deb=$1 newer=$2 postfix=$3 root=$4 folder=$5

# Nothing that is mounted here is seen outside. `unshare` would have said so of the root, but cannot in a chroot, which need
# not be a mount point: nsenter says it of the root of all mounts.
nsenter --mount=/proc/self/ns/mnt mount --make-rprivate /
mkdir -p "$folder/layers" "$root"
mount -t tmpfs tmpfs "$folder/layers" # the machine's own disk may be an overlay, which cannot be another's upper layer
mkdir "$folder/layers/upper" "$folder/layers/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/layers/upper,workdir=$folder/layers/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
trap 'cp "$root/var/log/maillog" "$folder/maillog" 2>/dev/null || true' EXIT
rm -f "$root/etc/resolv.conf"
: > "$root/etc/resolv.conf" # there is nobody to ask: no question waits for an answer
cp "$deb" "$root/tmp/one.deb"
cp "$newer" "$root/tmp/two.deb"
cp "$folder/story.py" "$root/tmp/story.py"
in_root() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
say() { echo "$1: $(in_root sh -c "$2" 2>&1 | tr '\n' ' ')"; }
# Images made small tell dpkg to leave documentation out.
install_package() { in_root dpkg --path-include='/usr/share/*' -i "$1" >> "$folder/dpkg.log" 2>&1; }
# By the package's own Python: it has the libraries of a server that receives.
story() { echo "story: $(in_root /usr/lib/welyb-relay/bin/python /tmp/story.py "$1" 2>> "$folder/story.err")"; }

mkdir -p "$root/srv/ged/macon-dupont"
install_package /tmp/one.deb
say version "welyb-relay --version"
say installed "dpkg-query -W -f '\${Version}' welyb-relay"
say user "getent passwd welyb-relay | cut -d: -f6,7"
say modes "stat -c '%a %U %G %n' /etc/welyb-relay/relay.toml /var/lib/welyb-relay"
in_root chown -R welyb-relay /srv/ged
say check "welyb-relay check --json | grep -c '\"ok\": true' >/dev/null && echo answered"
story alone
say data "stat -c '%a %U' /var/lib/welyb-relay/relay.db"
say built "grep -rl $folder /usr/lib/welyb-relay /etc/welyb-relay | head -3"
say manual "zcat /usr/share/man/fr/man1/welyb-relay-queue-hold.1.gz | grep -c Retient"
say titled "zcat /usr/share/man/man1/welyb-relay-serve.1.gz | grep '^\.TH'"
say completion "grep -c _welyb_relay /usr/share/bash-completion/completions/welyb-relay >/dev/null && echo there"

# Postfix as its package lays it out (lib is a link here), and of what its postinst does what a start needs. One that is
# installed here has mail of its own.
rm -rf "$root/etc/postfix" "$root/var/lib/postfix" "$root/var/spool/postfix"
tar -C "$postfix" -cf - . | tar -C "$root" -xf - --keep-directory-symlink
in_root sh -eu > "$folder/postfix.log" 2>&1 <<'END'
getent group postdrop || groupadd --system postdrop
getent passwd postfix || useradd --system --user-group --home-dir /var/spool/postfix --shell /usr/sbin/nologin postfix
chown postfix:postfix /var/lib/postfix
chgrp postdrop /usr/sbin/postdrop /usr/sbin/postqueue
chmod 2755 /usr/sbin/postdrop /usr/sbin/postqueue
cp /usr/share/postfix/master.cf.dist /etc/postfix/master.cf
END
story take
story rewrite

mv "$root/etc/welyb-relay/relay.toml" "$folder/relay.toml" # an upgrade must not mind
install_package /tmp/two.deb
say upgraded "dpkg-query -W -f '\${Version} \${Status}' welyb-relay"
cp "$folder/relay.toml" "$root/etc/welyb-relay/relay.toml"
story alone
say schema "/usr/lib/welyb-relay/bin/python -c \"
import pysqlite3; db = pysqlite3.connect('/var/lib/welyb-relay/relay.db')
print(*db.execute('PRAGMA user_version').fetchone(), *db.execute('SELECT count(*) FROM message').fetchone())\""

in_root dpkg -r welyb-relay >> "$folder/dpkg.log" 2>&1
say removed "ls /usr/bin/welyb-relay /etc/welyb-relay/relay.toml /var/lib/welyb-relay/relay.db"
in_root dpkg -P welyb-relay >> "$folder/dpkg.log" 2>&1
say purged "ls -d /usr/lib/welyb-relay /etc/welyb-relay /var/lib/welyb-relay/relay.db"
