# The command gets the line, not COMP_WORDS, which bash has split at each : = and @. The answer is never
# expanded. COMP_KEPT has the breaks that readline keeps in the word that they start.
# shellcheck shell=bash
_kvstore_completion() {
    local line=${COMP_LINE:0:COMP_POINT} kept=\$ answer
    shopt -q hostcomplete && kept+=@
    COMPREPLY=()
    while IFS= read -r answer; do
        COMPREPLY+=("${answer#* }")
        [[ $answer == dir* ]] && compopt -o nospace 2>/dev/null
    done < <(COMP_LINE=$line COMP_KEPT=$kept COMP_WORDBREAKS=$COMP_WORDBREAKS \
        _KVSTORE_COMPLETE=bash_complete "$1")
}
complete -o nosort -F _kvstore_completion kvstore
