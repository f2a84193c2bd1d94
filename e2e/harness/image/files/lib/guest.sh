# Functions of the guest's scripts.

say() {
    echo "paddock: $*" >/dev/ttyS0
} 2>/dev/null

load_modules() { # GROUP: a file in /modules, in load order
    while read -r module; do
        [ -d "/sys/module/$module" ] || insmod "/modules/$module.ko"
    done <"/modules/$1"
}

# Keeps asking for ever: three requests a second apart, a pause of two, again.
start_dhcp() { # INTERFACE
    udhcpc -i "$1" -f -t 3 -T 1 -A 2 -O mtu -x "hostname:$(hostname)" -s /sbin/dhcp-event \
        </dev/null >/dev/null 2>&1 &
}

# Leaves the data partition's device in /run/data-device.
find_data_disk() {
    device=$(findfs LABEL=paddock-data 2>/dev/null) && echo "$device" >/run/data-device
}

wait_for_data_disk() { # SECONDS
    tries=$(($1 * 20))
    until find_data_disk; do
        tries=$((tries - 1))
        if [ "$tries" -le 0 ]; then
            say "no ext4 partition with the label paddock-data, boots are not counted"
            return 1
        fi
        usleep 50000
    done
}

# Replaces a file of the data disk by its standard input; on the disk when it returns 0.
replace_durably() { # FILE
    cat >"$1.new" && sync "$1.new" && mv "$1.new" "$1" && sync "${1%/*}"
}

# Adds one to the count on the data disk. /run/boots has the count only once it is
# on the disk: nothing can show a count that a crash would take back.
count_boot() {
    [ -s /run/data-device ] || return 0
    if ! mount -t ext4 -o noatime "$(cat /run/data-device)" /data; then
        say "$(cat /run/data-device) cannot be mounted, boots are not counted"
        return 0
    fi
    boots=0
    [ -s /data/boots ] && read -r boots </data/boots
    boots=$((boots + 1))
    mkdir -p /data/records
    if echo "$boots" | replace_durably /data/boots; then
        echo "$boots" >/run/boots
    else
        say "/data/boots cannot be written, boots are not counted"
    fi
}

boots() { # the count, or `null`
    cat /run/boots 2>/dev/null || echo null
}

addresses() { # IPv4 addresses, one a line, loopback left out
    ip -4 -o addr show | awk '$2 != "lo" { sub("/.*", "", $4); print $4 }'
}

# Rewrites the page, and says so on the console when it can be had: both the boot and
# DHCP call this, the later one prints. Again when the address or name changes.
announce_page() {
    address=$(addresses | head -n 1)
    cat >"/run/index.$$" <<PAGE
<!DOCTYPE html>
<title>$(hostname)</title>
<h1>$(hostname)</h1>
<p>boot $(boots)</p>
<p>address ${address:-none}</p>
PAGE
    mv "/run/index.$$" /run/index.html
    [ -e /run/page ] && [ -n "$address" ] || return 0
    line="boot $(boots), address $address, page ready"
    [ "$(cat /run/announced 2>/dev/null)" = "$line" ] && return 0
    echo "$line" >/run/announced
    say "$line"
}

# ---- CGI

# A query parameter; what is not in the set of harmless characters is dropped.
param() { # NAME
    echo "&$QUERY_STRING" | tr '&' '\n' | sed -n "s/^$1=//p" | head -n 1 | tr -cd 'A-Za-z0-9._:-'
}

answer() { # STATUS, JSON
    printf 'Status: %s\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n\r\n%s\n' "$1" "$2"
    exit 0
}

refuse() { # MESSAGE
    answer '400 Bad Request' "{\"error\":\"$1\"}"
}

# Sets $file to a record's file on the data disk, from parameter `name` (default `default`).
find_record() {
    name=$(param name)
    name=${name:-default}
    case "$name" in
    .*) refuse 'name starts with a dot' ;;
    esac
    [ -d /data/records ] || answer '503 Service Unavailable' '{"error":"no data disk"}'
    file=/data/records/$name
}

# Replies to three pings, half a second of patience after the last.
replies() { # TARGET [PING OPTIONS]
    target=$1
    shift
    ping -c 3 -i 0.3 -W 1 -q "$@" "$target" 2>/dev/null | sed -n 's/.* \([0-9]*\) packets received.*/\1/p'
}
