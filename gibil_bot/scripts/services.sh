# shellcheck shell=sh
# shellcheck disable=SC2154  # set for each service: name, kind, wanted, image, full, port, inner, password, user_password
# The beginning of the task "services". Each service follows in a subshell that sets `name kind wanted image full port inner`
# and the settings of its kind, and calls `start` with the arguments of `docker run`. Its directory is
# /var/lib/gibil/services/NAME.

set -eu
fail() { printf 'gibil: %s\n' "$*" >&2; exit 1; }

# matches FOUND WANTED: 15.13 matches 15; an empty WANTED matches everything
matches() { test -z "$2" && return; case "$1." in "$2".*) return 0 ;; esac; return 1; }

engine=
for command in docker podman; do
    if command -v $command >/dev/null 2>&1 && timeout 20 $command info >/dev/null 2>&1; then engine=$command; break; fi
done

start() {
    if test -z "$engine" && test -d /run/systemd/system && test "$(id -u)" = 0; then
        echo "gibil: installing docker"
        install docker.io
        systemctl start docker || fail "cannot start docker, which $name needs"
        engine=docker
    fi
    began=$(date +%s)
    if test -n "$engine"; then
        container "$@"
    elif test "$kind" = other; then
        fail "$name: this machine has no container engine, and there are no packages that can replace $image"
    else
        directory=/var/lib/gibil/services/$name log=/var/lib/gibil/services/$name/log
        mkdir -p "$directory"
        : >"$log"
        "packaged_$kind"
    fi
    echo "gibil: $name listens on 127.0.0.1:$port after $(($(date +%s) - began)) s"
}

# install PACKAGE…: without starting the daemons in them, because this script starts the services
updated=/run/gibil-services-updated
refresh() { test -e "$updated" || { apt-get update -q && : >"$updated"; }; }
install() {
    command -v apt-get >/dev/null 2>&1 || fail "$name needs the packages $*, and this machine has no apt-get"
    test "$(id -u)" = 0 || fail "$name needs the packages $*, and only root can install them"
    refresh || fail "cannot read the package lists, and $name needs $*; see the output above"
    made=
    if test "$1" != docker.io && ! test -e /usr/sbin/policy-rc.d; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d && made=1
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends -o Dpkg::Options::=--force-confold "$@" \
        || fail "cannot install the packages $*; see the output above"
    test -z "$made" || rm -f /usr/sbin/policy-rc.d
}

# detach COMMAND…: start a process that survives this task and writes to the log; its pid is $server
detach() { setsid "$@" </dev/null >>"$log" 2>&1 & server=$!; }

# healthy COMMAND…: wait until it succeeds, at most a minute; on failure print the service's log
healthy() {
    turns=0
    until "$@" >/dev/null 2>&1; do
        turns=$((turns + 1))
        if test "$turns" -gt 300 || ! kill -0 "$server" 2>/dev/null; then
            tail -n 50 "$log" >&2
            fail "the service $name did not become healthy; its log is above"
        fi
        sleep 0.2
    done
    # Another process may have answered on that port.
    kill -0 "$server" 2>/dev/null || { tail -n 50 "$log" >&2; fail "the service $name ended at once; its log is above"; }
}

only_root() { test "$(awk '{ n += $3 } END { print n }' /proc/self/uid_map)" = 1; }

container() {
    $engine run -d --name "gibil-$name" "$@" "$full" >/dev/null || fail "cannot start the container of $name"
    turns=0
    until container_healthy; do
        turns=$((turns + 1))
        running=$($engine inspect -f '{{.State.Running}}' "gibil-$name" 2>/dev/null || echo false)
        if test "$turns" -gt 300 || test "$running" != true; then
            $engine logs --tail 50 "gibil-$name" >&2 || true
            fail "the service $name did not become healthy; its log is above"
        fi
        sleep 0.4
    done
}

container_healthy() {
    case $kind in
        postgres) set -- pg_isready -q -h 127.0.0.1 ;;
        redis) set -- redis-cli ping ;;
        mysql) set -- mysqladmin ping -h 127.0.0.1 --silent ;;
        mariadb) set -- healthcheck.sh --connect --innodb_initialized ;;
        *)
            health=$($engine inspect -f '{{if .State.Health}}{{.State.Health.Status}}{{end}}' "gibil-$name" 2>/dev/null)
            if test -n "$health"; then
                # podman checks on systemd's timer, usually every half minute; this command checks at once.
                test "$health" = healthy \
                    || { test "$engine" = podman && podman healthcheck run "gibil-$name" >/dev/null 2>&1; }
                return
            fi
            # docker itself answers on the published port, even if the service doesn't: check the container's own address first.
            own=$($engine inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' "gibil-$name" 2>/dev/null)
            own=${own%% *}
            test -z "$own" || timeout 5 bash -c ": </dev/tcp/$own/$inner" 2>/dev/null || return 1
            timeout 5 bash -c ": </dev/tcp/127.0.0.1/$port" 2>/dev/null
            return
            ;;
    esac
    $engine exec "gibil-$name" "$@" >/dev/null 2>&1
}

packaged_postgres() {
    ! only_root || fail "$name: PostgreSQL does not run as root, and this machine has no other user; run gibil as root"
    bin=$(postgres_bin)
    if test -z "$bin"; then
        refresh || fail "$name: cannot read the package lists; see the output above"
        offered=$(apt-cache search --names-only '^postgresql-[0-9]+$' | sed -n 's/^postgresql-\([0-9]*\) .*/\1/p' | sort -n)
        major=${wanted%%.*}
        test -n "$major" || major=$(echo "$offered" | tail -n 1)
        # shellcheck disable=SC2086  # each on its own line, wanted on one
        echo "$offered" | grep -qx "$major" || fail "$name: $image is requested, but there are only packages of postgres" $offered
        mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
        install "postgresql-$major"
        bin=$(postgres_bin)
        test -n "$bin" || fail "$name: $image is requested, but the package has postgres $major"
    fi
    id -u postgres >/dev/null 2>&1 || useradd --system --no-create-home postgres
    test -n "$method" || method=scram-sha-256
    printf '%s' "$password" >"$directory/password" && chmod 600 "$directory/password"
    chown -R postgres "$directory"
    cd "$directory"
    set -- -D "$directory/data" -U "${user:-postgres}" --auth-local=trust "--auth-host=$method" --encoding=UTF8 --no-sync
    test -z "$password" || set -- "$@" "--pwfile=$directory/password"
    as_postgres "$bin/initdb" "$@" >>"$log" 2>&1 || { cat "$log" >&2; fail "$name: initdb failed; its log is above"; }
    rm -f "$directory/password"
    detach setpriv --reuid postgres --regid "$(id -g postgres)" --clear-groups "$bin/postgres" -D "$directory/data" -p "$port" \
        -c listen_addresses=127.0.0.1 -c "unix_socket_directories=$directory" -c fsync=off -c full_page_writes=off
    healthy "$bin/pg_isready" -q -h 127.0.0.1 -p "$port"
    database=${database:-${user:-postgres}}
    test "$database" = postgres \
        || as_postgres "$bin/createdb" -h "$directory" -p "$port" -U "${user:-postgres}" --maintenance-db=postgres -- "$database" \
        || fail "$name: cannot create the database $database"
}

as_postgres() { setpriv --reuid postgres --regid "$(id -g postgres)" --clear-groups "$@"; }

postgres_bin() {
    # shellcheck disable=SC2012  # names of versions, without blanks
    for folder in $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV); do
        test -x "$folder/initdb" && test -x "$folder/postgres" || continue
        if matches "$("$folder/postgres" --version | sed 's/^[^0-9]*\([0-9.]*\).*/\1/')" "$wanted"; then
            echo "$folder"
            return
        fi
    done
}

packaged_redis() {
    command -v redis-server >/dev/null 2>&1 || install redis-server
    found=$(redis-server --version | sed -n 's/.*v=\([0-9.]*\).*/\1/p')
    matches "$found" "$wanted" || fail "$name: $image is requested, but the package has redis $found"
    detach redis-server --bind 127.0.0.1 --port "$port" --save '' --appendonly no --dir "$directory" --daemonize no
    healthy redis-cli -h 127.0.0.1 -p "$port" ping
}

packaged_mysql() { sql_server mysqld mysql-server; }
packaged_mariadb() { sql_server mariadbd mariadb-server; }

sql_server() {
    command -v "$1" >/dev/null 2>&1 || install "$2"
    found=$("$1" --version 2>/dev/null | sed -n 's/.*Ver \([0-9.]*\).*/\1/p')
    matches "$found" "$wanted" || fail "$name: $image is requested, but the package has $kind $found"
    account=mysql
    ! only_root || account=root
    data=$directory/data
    mkdir -p "$data"
    sql_begin >"$directory/begin.sql"
    chown -R "$account" "$directory"
    if test "$1" = mysqld; then
        mysqld --no-defaults --initialize-insecure "--user=$account" "--datadir=$data" >>"$log" 2>&1
    else
        mariadb-install-db --no-defaults "--user=$account" "--datadir=$data" --skip-test-db >>"$log" 2>&1
    fi || { tail -n 50 "$log" >&2; fail "$name: cannot create its data directory; its log is above"; }
    detach "$1" --no-defaults "--user=$account" "--datadir=$data" --bind-address=127.0.0.1 "--port=$port" \
        "--socket=$directory/socket" "--pid-file=$directory/pid" "--init-file=$directory/begin.sql"
    # shellcheck disable=SC2016  # the inner shell expands it
    healthy sh -c 'test -S "$1" && mysqladmin --no-defaults --socket="$1" ping' sh "$directory/socket"
    rm -f "$directory/begin.sql"
}

quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/\\\\/\\\\\\\\/g; s/'/''/g")"; }
say() { printf '%s\n' "$1"; }  # echo would interpret the backslashes
sql_begin() {
    say "CREATE USER IF NOT EXISTS 'root'@'127.0.0.1';"
    for host in localhost 127.0.0.1; do
        say "ALTER USER 'root'@'$host' IDENTIFIED BY $(quoted "$password");"
    done
    say "GRANT ALL ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;"
    # shellcheck disable=SC2016  # SQL's quotes
    name_quoted=$(printf '%s' "$database" | sed 's/`/``/g')
    test -z "$database" || say "CREATE DATABASE IF NOT EXISTS \`$name_quoted\`;"
    test -n "$user" || return 0
    for host in localhost 127.0.0.1; do
        say "CREATE USER IF NOT EXISTS $(quoted "$user")@'$host' IDENTIFIED BY $(quoted "$user_password");"
        test -z "$database" || say "GRANT ALL ON \`$name_quoted\`.* TO $(quoted "$user")@'$host';"
    done
}
