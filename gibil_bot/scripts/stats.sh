# shellcheck shell=sh
# Prints statistics of the machine. It may see limits below those of its kernel, as a container does. A local machine doesn't
# see its limits, so they come from its provider (Metered).

export LC_ALL=C
read -r load </proc/loadavg; echo "load $load"
echo "cpus $(nproc)"
while read -r name value _; do
    case $name in MemTotal:|MemAvailable:) echo "$name $value" ;; esac
done <"/proc/meminfo"
for f in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
    [ -r $f ] && echo "limit $(cat $f)"
done
for f in /sys/fs/cgroup/memory.current /sys/fs/cgroup/memory/memory.usage_in_bytes; do
    [ -r $f ] && echo "used $(cat $f)"
done
df -Pk / | { read -r _; read -r _ size used free _; echo "disk $size $used $free"; }
command -v ps >/dev/null || exit 0
ps -eo pid=,pcpu=,rss=,etimes=,args= --sort=-pcpu,-rss | while read -r p c r e a; do
    case $a in *--sort=-pcpu,-rss*) continue ;; esac  # ourselves
    printf 'process %s %s %s %s %.300s\n' "$p" "$c" "$r" "$e" "$a"
done
