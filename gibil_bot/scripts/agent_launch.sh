# shellcheck shell=sh
# Starts an agent's program in the checkout, with a new HOME. What the machine keeps in the other one for tools (toolchains, caches,
# configuration of registries) is linked, and settings of agents are not: earlier tasks may have written them.

set -eu
umask 077
home=@HOME@ old=@OLD@
test -f @STDIN@ || test @STDIN@ = /dev/null || { echo "gibil: the prompt @STDIN@ doesn't exist" >&2; exit 1; }
rm -rf "$home"
mkdir -p "$home"

# links FOLDER: link the entries of a folder of the old home; FOLDER is empty, or ends with a slash
links() {
    for entry in "$old/$1"* "$old/$1".[!.]*; do
        name=$1${entry##*/}
        test -e "$entry" || test -L "$entry" || continue
        case $name in
            @OWN@) ;;
            .config | .cache | .local | .local/share | .local/state)
                if test -d "$entry"; then
                    mkdir "$home/$name"
                    links "$name/"
                fi
                ;;
            *) ln -s "$entry" "$home/$name" ;;
        esac
    done
}
links ''

# file PATH TEXT MODE
file() {
    mkdir -p "$home/$(dirname "$1")"
    printf '%s' "$2" >"$home/$1"
    chmod "$3" "$home/$1"
}
@FILES@
umask 022
export HOME="$home"
cd @CHECKOUT@
exec @COMMAND@ <@STDIN@
