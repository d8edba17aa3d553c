# shellcheck shell=sh
# Makes the key on stdin the machine's host key.
#
# Renamed into place, so that a machine that loses its power has the one key or the other. `systemctl reload` has sshd read its
# keys again and leaves open connections alone. The unit is `ssh` on Debian and Ubuntu and `sshd` elsewhere; where each
# connection has an sshd of its own there is nothing to reload. So no failure here counts, but what the next connection shows.

set -eu
umask 077
key=@HOST_KEY@
new=$key.gibil
trap 'rm -f "$new" "$new.pub"' EXIT
cat >"$new"
ssh-keygen -y -f "$new" >"$new.pub"
case "$(cat "$new.pub")" in
    '@PUBLIC@' | '@PUBLIC@ '*) ;;
    *) echo 'the host key did not arrive as it was sent' >&2; exit 1 ;;
esac
chmod 644 "$new.pub"
mkdir -p @MARK_FOLDER@
: >@MARK@
mv -f "$new.pub" "$key.pub"
mv -f "$new" "$key"
if command -v restorecon >/dev/null; then restorecon -F "$key" "$key.pub" || :; fi
systemctl reload ssh.service 2>/dev/null || systemctl reload sshd.service 2>/dev/null \
    || kill -HUP "$(cat /run/sshd.pid)" 2>/dev/null || :
