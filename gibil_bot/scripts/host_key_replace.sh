# shellcheck shell=sh
# Installs the key on stdin as the machine's host key.
#
# The files are replaced by renaming, so after a power loss the machine has either the old or the new key. `systemctl reload`
# makes sshd read its keys again and doesn't affect open connections. The unit is `ssh` on Debian and Ubuntu and `sshd`
# elsewhere; where each connection has its own sshd, nothing has to be reloaded. So failures are ignored here: the next
# connection checks the key.

set -eu
umask 077
key=@HOST_KEY@
new=$key.gibil
trap 'rm -f "$new" "$new.pub"' EXIT
cat >"$new"
ssh-keygen -y -f "$new" >"$new.pub"
case "$(cat "$new.pub")" in
    '@PUBLIC@' | '@PUBLIC@ '*) ;;
    *) echo 'the host key that arrived is not the one that was sent' >&2; exit 1 ;;
esac
chmod 644 "$new.pub"
mkdir -p @MARK_FOLDER@
: >@MARK@
mv -f "$new.pub" "$key.pub"
mv -f "$new" "$key"
if command -v restorecon >/dev/null; then restorecon -F "$key" "$key.pub" || :; fi
systemctl reload ssh.service 2>/dev/null || systemctl reload sshd.service 2>/dev/null \
    || kill -HUP "$(cat /run/sshd.pid)" 2>/dev/null || :
