#compdef kvstore
_kvstore_completion() {
    local -a plain folders described
    local answer type value help word=$PREFIX
    [[ -z $compstate[quote] ]] && word=${(Q)word}
    local -a before=("${(@Q)words[2,CURRENT-1]}")
    [[ $PREFIX == --*=* ]] && compset -P 1 '*='
    for answer in "${(@f)$(COMP_WORDS=${(pj:\x1f:)before} COMP_WORD=$word \
        _KVSTORE_COMPLETE=zsh_complete kvstore)}"; do
        type=${answer%%$'\t'*} value=${answer#*$'\t'} help=${answer##*$'\t'}
        value=${value%$'\t'*}
        case $type in
            plain)
                if [[ -n $help ]]; then
                    described+=("${${value//\\/\\\\}//:/\\:}:$help")
                else
                    plain+=("$value")
                fi
                ;;
            folder) folders+=("$value") ;;
            file)
                [[ $PREFIX == @* ]] && compset -P 1 @
                _files
                ;;
            dir) _files -/ ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described
    (( $#folders )) && compadd -V unsorted -S '' -a folders
    (( $#plain )) && compadd -V unsorted -a plain
}
# As the file _kvstore of a folder in fpath this is the body of a function, which runs at each completion.
if [[ $funcstack[1] == _kvstore ]]; then
    _kvstore_completion "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i; }
    compdef _kvstore_completion kvstore
fi
