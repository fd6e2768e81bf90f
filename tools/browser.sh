# Sourced by tools/check with `venv` set: a browser for the tests of tools.inspect. Whatever happens, it returns
# 0 after at most some minutes: without a browser those tests are skipped and say so.

browser_log="$venv/browser.log"

install_browser() {
    if have_browser; then
        return 0
    elif [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "No chromium and chromedriver here, and only root on Debian can have tools/check install them:" \
            "the tests of tools.inspect in a browser are skipped."
    else
        echo "Installing chromium and its driver for the tests of tools.inspect (log: $browser_log)."
        if ! install_with_apt >"$browser_log" 2>&1 || ! have_browser; then
            echo "apt could not install them: the tests of tools.inspect in a browser are skipped. $(
                grep -m 1 '^E: ' "$browser_log"
            )"
        fi
    fi
    return 0
}

have_browser() {
    command -v chromium >/dev/null && command -v chromedriver >/dev/null
}

# What waits for the network may be stopped at any time; unpacking should not be, so it comes apart.
install_with_apt() {
    local packages="chromium chromium-driver"
    apt_within 90 update && apt_within 240 install --download-only $packages &&
        apt_within 300 install --no-download $packages
}

apt_within() {
    local seconds="$1"
    shift
    DEBIAN_FRONTEND=noninteractive timeout --kill-after=10 "$seconds" apt-get -y --no-install-recommends \
        -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=30 "$@" </dev/null
}
