# shellcheck shell=sh
# Ends the SSH server's process that listens on a forwarded port for a connection that was cut: sshd notices that after minutes,
# and until then no other connection can listen on the port. Other programs that listen on it are left alone.

h=$(printf '%04X' @PORT@)
i=$(awk -v h=":$h" '$4 == "0A" && substr($2, length($2) - 4) == h { print $10 }' /proc/net/tcp /proc/net/tcp6 2>/dev/null) || i=''
[ -n "$i" ] || exit 0
for d in /proc/[0-9]*; do
    read -r n 2>/dev/null <"$d/comm" || continue
    case $n in sshd | sshd-session) ;; *) continue ;; esac
    for f in "$d"/fd/*; do
        l=$(readlink "$f" 2>/dev/null) || continue
        for s in $i; do
            [ "$l" != "socket:[$s]" ] || kill -9 "${d#/proc/}" 2>/dev/null || :
        done
    done
done
k=0
while [ "$k" -lt 50 ] && grep -qE "^ *[0-9]+: [0-9A-F]+:$h [0-9A-F]+:0000 0A " /proc/net/tcp /proc/net/tcp6 2>/dev/null; do
    sleep 0.1 2>/dev/null || sleep 1
    k=$((k + 1))
done
